"""`sanitizer upload`."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.options import (
    InputSize,
    Json,
    Mean,
    MetadataPairs,
    Std,
    given,
    numbers,
    pairs,
    size,
)
from service.cli.terminal import amount, emit, result, say


def upload(
    model_file: Annotated[Path, typer.Argument(help="A file of weights: safetensors or PyTorch.")],
    name: Annotated[
        str | None, typer.Option(help="For people; the file's name if left out.")
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="Such as wrn-16-1 or resnet50; auto: found from the weights.")
    ] = "auto",
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    metadata: MetadataPairs = None,
    as_json: Json = False,
) -> None:
    """Upload a model; prints its id."""
    from service.cli.sending import send_model

    fields = given(
        name=name,
        architecture=architecture,
        input_size=size(input_size) if input_size else None,
        mean=numbers(mean, "--mean") if mean else None,
        std=numbers(std, "--std") if std else None,
        metadata=pairs(metadata, "--metadata") if metadata else None,
    )
    with connected() as remote:
        model = send_model(remote, model_file, fields)
    if as_json:
        emit(model.document)
        return
    result(model.id)
    say(f"Uploaded {model.filename}, {amount(model.bytes)}, SHA-256 {model.sha256}.")
