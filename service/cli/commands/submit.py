"""`sanitizer submit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import options
from service.cli.connecting import connected
from service.cli.failures import WrongUsage
from service.cli.options import Json, given
from service.cli.terminal import amount, duration, emit, result, say

if TYPE_CHECKING:
    from service.cli.answers import JobEstimate


def submit(
    model: Annotated[str | None, typer.Option(metavar="ID", help="The suspect model.")] = None,
    clean: Annotated[
        str | None, typer.Option(metavar="ID", help="Clean images to train on.")
    ] = None,
    clean_images: Annotated[int | None, typer.Option(help="Draw so many of them.")] = None,
    clean_seed: Annotated[int | None, typer.Option(help="Of that draw.")] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Images to measure on; else a part of the clean ones."),
    ] = None,
    method: options.Method = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    probe: options.ProbeFiles = None,
    max_asr: options.MaxAsr = None,
    max_accuracy_drop: options.MaxDrop = None,
    screen: options.Screen = None,
    inspect: options.Inspect = None,
    durability: options.Durability = None,
    seed: options.Seed = None,
    devices: options.Devices = None,
    device: options.Device = None,
    precision: options.Precision = None,
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    metadata: options.MetadataPairs = None,
    request: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The whole request; what other options say replaces its parts.",
        ),
    ] = None,
    validate_only: Annotated[
        bool, typer.Option(help="Have it checked and its cost estimated, and nothing done.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Show the job until it has ended.")] = False,
    strict: options.Strict = False,
    as_json: Json = False,
) -> None:
    """Submit a job; prints its id. With --wait the exit code tells the verdict, see --strict."""
    document = options.read_json(request) if request else {}
    if not isinstance(document, dict):
        raise WrongUsage(f"{request} holds no JSON object.")
    asked = given(
        model_id=model,
        clean_data=given(dataset_id=clean, images=clean_images, seed=clean_seed) or None,
        evaluation_data={"dataset_id": evaluation} if evaluation else None,
        method=options.method_config(method, preset, settings or []),
        probes=options.read_probes(probe) if probe else None,
        policy=given(max_asr=max_asr, max_accuracy_drop=max_accuracy_drop) or None,
        screen=screen,
        inspect=inspect,
        durability=durability,
        seed=seed,
        devices=devices,
        device=device,
        precision=precision,
        name=name,
        metadata=options.pairs(metadata, "--metadata") if metadata else None,
    )
    body = _laid_over(document, asked)
    _refuse_without(body, "model_id", "--model")
    _refuse_without(body.get("clean_data") or {}, "dataset_id", "--clean")
    if validate_only or body.pop("validate_only", False):
        _validate(body, as_json)
    else:
        _submit(body, wait=wait, strict=strict, as_json=as_json)


def _laid_over(document: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    body = dict(document)
    for field, value in asked.items():
        below = body.get(field)
        # Another method has other settings; the parts of the rest go together.
        merge = isinstance(below, dict) and isinstance(value, dict) and field != "method"
        body[field] = {**below, **value} if merge else value  # type: ignore[dict-item]  # by `merge`
    return body


def _refuse_without(document: dict[str, Any], field: str, option: str) -> None:
    if field not in document:
        raise WrongUsage(
            f"{option} is missing.",
            hint="Give the ids that `sanitizer upload` and `sanitizer data add` printed, or the "
            "whole request as --request FILE.json.",
        )


def _validate(body: dict[str, Any], as_json: bool) -> None:
    with connected() as remote:
        validation = remote.validate_job(body)
    if as_json:
        emit(validation.document)
        return
    for check in validation.checks:
        result(f"{check.name}: {check.outcome}. {check.detail}")
    if validation.estimate is not None:
        for line in _estimate_lines(validation.estimate):
            result(line)


def _estimate_lines(estimate: "JobEstimate") -> list[str]:
    """What the job would take, for people."""
    memory = amount(estimate.peak_host_bytes)
    if estimate.peak_device_bytes is not None:
        memory += f", and {amount(estimate.peak_device_bytes)} on the GPU"
    low, high = duration(estimate.seconds_low), duration(estimate.seconds_high)
    return [
        f"estimate: {duration(estimate.seconds)}, between {low} and {high}; {memory} of memory.",
        *(f"  {sentence}" for sentence in estimate.explanation),
    ]


def _submit(body: dict[str, Any], *, wait: bool, strict: bool, as_json: bool) -> None:
    with connected() as remote:
        job = remote.create_job(body)
        if not as_json:
            result(job.id)
        elif not wait:
            emit(job.document)
        if not wait:
            why = f": {job.waiting_reason}" if job.waiting_reason else ""
            say(f"The job is {job.status}{why}. Watch it: sanitizer watch {job.id}")
            return
        from service.cli.watching import watch_to_the_end

        raise typer.Exit(watch_to_the_end(remote, job.id, strict=strict, as_json=as_json))
