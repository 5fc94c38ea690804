"""What commands that list things, or tell of one, have in common."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from service.cli.answers import Answer, ListAnswer
from service.cli.terminal import emit, fields, say, table

if TYPE_CHECKING:
    from rich.table import Table

Kind = TypeVar("Kind", bound=Answer)


def show_list(
    page: ListAnswer,
    kind: type[Kind],
    as_table: Callable[[Sequence[Kind]], "Table"],
    *,
    as_json: bool,
    nothing: str,
) -> None:
    """A page of a list: the API's object, or a table for people.

    Args:
        kind: Of what is listed.
        as_table: Makes the table.
        as_json: Whether the object alone is printed.
        nothing: Said where the list is empty.
    """
    if as_json:
        emit(page.document)
    elif not page.data:
        say(nothing)
    else:
        table(as_table([kind.read(item) for item in page.data]))
        if page.has_more:
            say("There are more: --limit, or --all.")


def show_one(answer: Answer, *, as_json: bool) -> None:
    """One object of the API: as it came, or its fields line by line."""
    if as_json:
        emit(answer.document)
    else:
        fields(answer.document)
