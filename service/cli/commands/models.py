"""`sanitizer models`."""

from typing import Annotated, Any

import typer

from service.cli.connecting import connected
from service.cli.failures import WrongUsage
from service.cli.options import (
    NOTHING,
    Everything,
    InputSize,
    Json,
    Limit,
    Mean,
    MetadataPairs,
    Std,
    given,
    numbers,
    or_nothing,
    pairs,
    size,
)
from service.cli.terminal import say

group = typer.Typer(invoke_without_command=True, help="List models; `models show ID` tells of one.")
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Id of the model.")]


@group.callback()
def models(
    context: typer.Context,
    limit: Limit = 20,
    everything: Everything = False,
    as_json: Json = False,
) -> None:
    """List models, uploaded and sanitized, newest first."""
    if context.invoked_subcommand is not None:
        return
    with connected() as remote:
        page = remote.models(limit=None if everything else limit)
    from service.cli.answers import ModelAnswer
    from service.cli.listing import show_list
    from service.cli.tables import models_table

    show_list(page, ModelAnswer, models_table, as_json=as_json, nothing="No models.")


@group.command()
def show(model: Model, as_json: Json = False) -> None:
    """Tell of one model."""
    with connected() as remote:
        answer = remote.model(model)
    from service.cli.listing import show_one

    show_one(answer, as_json=as_json)


@group.command("set")
def change(
    model: Model,
    name: Annotated[str | None, typer.Option(help=f"For people; {NOTHING}: the file's.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Such as wrn-16-1; auto: found from the weights.")
    ] = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    metadata: MetadataPairs = None,
    as_json: Json = False,
) -> None:
    """Correct what was said about a model; its file stays as it is.

    `none` takes a value back: the architecture's own size, nothing subtracted or divided.
    """
    wanted: dict[str, Any] = {
        **or_nothing("name", name, str),
        **given(architecture=architecture),
        **or_nothing("input_size", input_size, size),
        **or_nothing("mean", mean, lambda text: numbers(text, "--mean")),
        **or_nothing("std", std, lambda text: numbers(text, "--std")),
        **given(metadata=pairs(metadata, "--metadata") if metadata else None),
    }
    if not wanted:
        raise WrongUsage("Say what is to be another: --mean, --std, --input-size and so on.")
    with connected() as remote:
        answer = remote.change_model(model, wanted)
    from service.cli.listing import show_one

    show_one(answer, as_json=as_json)


@group.command()
def delete(model: Model) -> None:
    """Remove a model and its file; jobs that used it stay."""
    with connected() as remote:
        remote.delete_model(model)
    say(f"The model {model} is deleted.")
