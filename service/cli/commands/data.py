"""`sanitizer data`."""

from typing import Annotated, Any

import typer

from service.cli import options
from service.cli.connecting import connected
from service.cli.failures import WrongUsage
from service.cli.options import (
    NOTHING,
    ClassNames,
    Everything,
    Json,
    Limit,
    MetadataPairs,
    given,
    or_nothing,
    pairs,
)
from service.cli.terminal import emit, result, say

group = typer.Typer(
    invoke_without_command=True, help="List sets of images; `data add PATH` adds one."
)
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Id of the data set.")]


@group.callback()
def datasets(
    context: typer.Context,
    limit: Limit = 20,
    everything: Everything = False,
    as_json: Json = False,
) -> None:
    """List sets of images, newest first."""
    if context.invoked_subcommand is not None:
        return
    with connected() as remote:
        page = remote.datasets(limit=None if everything else limit)
    from service.cli.answers import DatasetAnswer
    from service.cli.listing import show_list
    from service.cli.tables import datasets_table

    show_list(page, DatasetAnswer, datasets_table, as_json=as_json, nothing="No data sets.")


@group.command()
def add(
    path: Annotated[
        str,
        typer.Argument(
            help="A zip, npz or parquet file; a folder of class folders; or file:///... for images "
            "that the server can read where they lie."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="For people; the file's name if left out.")
    ] = None,
    class_names: ClassNames = None,
    metadata: MetadataPairs = None,
    as_json: Json = False,
) -> None:
    """Add a set of images; prints its id."""
    from service.cli.sending import send_data

    sent = given(
        name=name,
        class_names=options.class_names(class_names) if class_names else None,
        metadata=pairs(metadata, "--metadata") if metadata else None,
    )
    with connected() as remote:
        dataset = send_data(remote, path, sent)
    if as_json:
        emit(dataset.document)
        return
    result(dataset.id)
    say(f"Added {dataset.name} ({dataset.format}).")


@group.command()
def show(dataset: Dataset, as_json: Json = False) -> None:
    """Tell of one set of images."""
    with connected() as remote:
        answer = remote.dataset(dataset)
    from service.cli.listing import show_one

    show_one(answer, as_json=as_json)


@group.command("set")
def change(
    dataset: Dataset,
    name: Annotated[str | None, typer.Option(help=f"For people; {NOTHING}: the file's.")] = None,
    class_names: ClassNames = None,
    metadata: MetadataPairs = None,
    as_json: Json = False,
) -> None:
    """Correct what was said about a set of images; they stay as they are.

    `none` takes class names back: numbers by value, other names sorted.
    """
    wanted: dict[str, Any] = {
        **or_nothing("name", name, str),
        **or_nothing("class_names", class_names, options.class_names),
        **given(metadata=pairs(metadata, "--metadata") if metadata else None),
    }
    if not wanted:
        raise WrongUsage("Say what is to be another: --class-names, --name or --metadata.")
    with connected() as remote:
        answer = remote.change_dataset(dataset, wanted)
    from service.cli.listing import show_one

    show_one(answer, as_json=as_json)


@group.command()
def delete(dataset: Dataset) -> None:
    """Remove a set of images; what a reference points to stays as it is."""
    with connected() as remote:
        remote.delete_dataset(dataset)
    say(f"The data set {dataset} is deleted.")
