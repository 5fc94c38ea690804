"""Where output goes: results to standard output, all that is said beside them to standard error."""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from service.cli.failures import CommandFailed, Refused

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@cache
def stdout() -> "Console":
    """For results: ids, tables, JSON."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def stderr() -> "Console":
    """For progress, messages and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def plain(text: object) -> str:
    """Text from elsewhere, without characters that could steer a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )


def say(message: object, *, style: str | None = None) -> None:
    """A message for people."""
    stderr().print(plain(message), style=style, markup=False)


def result(text: object) -> None:
    """One line of the result, as it is: ids and secrets are never wrapped or coloured."""
    stdout().print(plain(text), markup=False)


def table(content: "Table") -> None:
    """A table; where no terminal sets a width, as wide as it needs to be."""
    from rich.console import Console

    console = stdout()
    if not console.is_terminal:
        console = Console(width=1000, highlight=False)
    console.print(content)


def emit(document: Mapping[str, Any]) -> None:
    """The API's object, and nothing else."""
    stdout().out(json.dumps(document, indent=2, ensure_ascii=False), highlight=False)


def fields(document: Mapping[str, Any]) -> None:
    """The fields of an object of the API, one a line, without its links and what is null."""
    shown = {
        name: value
        for name, value in document.items()
        if name not in ("object", "links") and value not in (None, {}, [])
    }
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        result(f"{name:{width}}  {text}")


def explain(failure: CommandFailed) -> None:
    """Says what went wrong and what to do."""
    say(f"Error: {failure.message}", style="bold red")
    if isinstance(failure, Refused):
        for line in failure.lines:
            say(line)
    if failure.hint:
        say(failure.hint)


def amount(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def share(value: float) -> str:
    """A share in [0, 1] as per cent."""
    return f"{100 * value:.2f}%"


def duration(seconds: float) -> str:
    """Seconds for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
