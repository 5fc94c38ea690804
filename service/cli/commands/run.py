"""`sanitizer run`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from service.cli import options
from service.cli.failures import WrongUsage
from service.cli.options import given
from service.cli.terminal import duration, emit, say


def run(
    out: Annotated[Path, typer.Option(help="Folder for the model and the report.")],
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="[SPEC.json]", help="The whole specification; or use the options."),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The suspect model.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Such as wrn-16-1; found from the weights if left out.")
    ] = None,
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    clean: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Clean images: folder, zip, npz, parquet.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Draw so many of them.")] = None,
    class_names: options.ClassNames = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Images to measure on; else a part of the clean ones."),
    ] = None,
    probe: options.ProbeFiles = None,
    method: options.Method = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    max_asr: options.MaxAsr = None,
    max_accuracy_drop: options.MaxDrop = None,
    screen: options.Screen = None,
    inspect: options.Inspect = None,
    durability: options.Durability = None,
    seed: options.Seed = None,
    devices: options.Devices = None,
    device: options.Device = None,
    precision: options.Precision = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; OUT/work if left out.")
    ] = None,
    strict: options.Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Sanitize a model on this machine, with no service anywhere.

    The same command, given again after an interruption, goes on from the last checkpoint.
    """
    names = options.class_names(class_names) if class_names else None
    asked = given(
        model=given(
            path=_absolute(model),
            architecture=architecture,
            input_size=options.size(input_size) if input_size else None,
            mean=options.numbers(mean, "--mean") if mean else None,
            std=options.numbers(std, "--std") if std else None,
        )
        or None,
        clean_data=given(path=_absolute(clean), images=images, class_names=names) or None,
        evaluation_data=given(path=_absolute(evaluation), class_names=names)
        if evaluation
        else None,
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
    )
    if spec is not None and asked:
        raise WrongUsage(f"Either {spec} or options that say what to run, not both.")
    if spec is None and not (model and clean):
        raise WrongUsage("Give SPEC.json, or at least --model FILE and --clean PATH.")
    out.mkdir(parents=True, exist_ok=True)
    if spec is None:
        spec = out / "spec.json"
        spec.write_text(json.dumps(asked, indent=2))
    _run(spec, out, work, strict=strict, as_json=as_json)


def _run(spec: Path, out: Path, work: Path | None, *, strict: bool, as_json: bool) -> None:
    from sanitizer.exits import Exit
    from sanitizer.report.model import Report
    from service.cli.answers import Figures
    from service.cli.child import show_run
    from service.cli.following import exit_of_verdict, show_figures, show_verdict
    from service.cli.processes import interrupted_by_signals

    arguments = ["-m", "sanitizer", "run", str(spec), "--out", str(out), "--exit-with-parent"]
    try:
        with interrupted_by_signals():
            show_run(arguments + (["--work", str(work)] if work else []), out / "run.log")
    except KeyboardInterrupt:
        say("\nStopped. The same command goes on from the last checkpoint.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    text = (out / "report.json").read_text()
    report = Report.model_validate_json(text)
    if as_json:
        emit(json.loads(text))
    else:
        show_figures(Figures.of(report.before), Figures.of(report.after))
        show_verdict(report.decision.verdict, report.decision.reasons)
        say(f"{report.model.architecture}, {duration(report.seconds)}. All files: {out}")
    raise typer.Exit(exit_of_verdict(report.decision.verdict, strict=strict))


def _absolute(path: Path | None) -> str | None:
    return str(path.resolve()) if path is not None else None
