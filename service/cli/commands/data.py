"""`sanitizer data`."""

from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.options import ClassNames, Json, MetadataPairs, given, pairs
from service.cli.terminal import emit, result, say

group = typer.Typer(no_args_is_help=True, help="Clean images.")


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

    fields = given(
        name=name,
        class_names=class_names.split(",") if class_names else None,
        metadata=pairs(metadata, "--metadata") if metadata else None,
    )
    with connected() as remote:
        dataset = send_data(remote, path, fields)
    if as_json:
        emit(dataset.document)
        return
    result(dataset.id)
    say(f"Added {dataset.name} ({dataset.format}).")
