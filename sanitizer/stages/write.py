"""Writes what a run made: the model, then report, pictures and page."""

import platform
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from sanitizer.choice import records_of
from sanitizer.compute import device_name
from sanitizer.cost.measured import measure_cost
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.inspection import looks_of
from sanitizer.evaluation.inversion import Found
from sanitizer.evaluation.metrics import defense_effectiveness
from sanitizer.evaluation.predict import predict
from sanitizer.events import ResultEvent, Stage
from sanitizer.machine import peak_resident_bytes, processor_name
from sanitizer.networks.checkpoints import read_checkpoint, write_checkpoint
from sanitizer.networks.weights import put_weights
from sanitizer.report.artifacts import model_artifact, result_name, sha256_of, write_report
from sanitizer.report.model import Cost, Durability, Evaluation, ModelFile, Report, Screening
from sanitizer.report.verdict import decide
from sanitizer.screened import Screened
from sanitizer.stages.expect import doubts_of
from sanitizer.stages.measure import with_first_trigger
from sanitizer.stages.run import Run
from sanitizer.stages.search import inspections_of
from sanitizer.stages.seek import misleading

LONGEST_NAME = 200
"""Characters of a class's name in the report, as many as a request may give it: archives and
tables may name classes at any length."""


@dataclass(frozen=True)
class Results:
    """What the stages before the last found out.

    Attributes:
        model_path: The sanitized model, written.
        after: What it is like.
        durability: What comes back in it; None: not asked for, or not to be told.
        loaded: The clean images before any was left out.
        screened: Which were; None: nobody looked.
        found_before: Changes found in the suspect model; none where nobody searched.
        found_after: In the sanitized one.
    """

    model_path: Path
    after: Evaluation
    durability: Durability | None
    loaded: ImageSet
    screened: Screened | None
    found_before: list[Found]
    found_after: list[Found]


def deliver(run: Run) -> Path:
    """Writes the model, and goes on with the weights as the file has them.

    A half-precision upload gets a half-precision result: what is measured must be that.
    """
    suspect, checkpoint = run.inputs.suspect, run.inputs.checkpoint
    path = run.out / result_name(run.inputs.input_file.filename)
    if run.group.is_leader:
        write_checkpoint(path, suspect.state_for(checkpoint), like=checkpoint)
    run.group.wait()
    # Counters that old files lack are not in it.
    put_weights(suspect.network.network, read_checkpoint(path).state)
    return path


def write(run: Run, results: Results) -> Report:
    """Writes report, pictures and page beside the model, and tells that all is there."""
    run.journal.begin(Stage.WRITE, "Writing the model and the report.")
    begun = monotonic()
    inputs = run.inputs
    before = run.state.before
    if before is None:
        raise RuntimeError("the suspect model is measured before anything is written")
    screening = _screening_of(run, results)
    inspections = inspections_of(run, results.found_before)
    misled = misleading(run)
    report = Report(
        model=inputs.model_record(),
        input=inputs.input_file,
        output=ModelFile(
            filename=results.model_path.name,
            format=inputs.checkpoint.format,
            sha256=sha256_of(results.model_path),
            bytes=results.model_path.stat().st_size,
        ),
        clean_data=inputs.clean_record,
        evaluation_data=inputs.evaluation_record,
        class_names=[name[:LONGEST_NAME] for name in inputs.evaluation.class_names],
        method=run.spec.method.model_dump(mode="json"),
        seed=run.spec.seed,
        device=device_name(run.device),
        devices=run.group.size,
        precision=str(run.precision).removeprefix("torch."),
        versions=_versions(),
        before=before,
        after=results.after,
        der={
            old.name: defense_effectiveness(
                before.accuracy.value, results.after.accuracy.value, old.asr.value, new.asr.value
            )
            for old, new in zip(before.probes, results.after.probes, strict=True)
        },
        decision=decide(
            run.spec.policy,
            before,
            results.after,
            inspections,
            results.durability,
            screening,
            misled,
            run.inputs.suspect.num_classes,
            doubts_of(run),
        ),
        screening=screening,
        inspections=inspections,
        misleading=misled,
        durability=results.durability,
        tries=records_of(run.state.tried) if run.chooses else None,
        stages=run.state.finished,
        warnings=run.journal.warnings,
        seconds=run.seconds(),
        resumed=run.state.resumed,
    )
    if not run.group.is_leader:
        return report
    pictures = _draw(run, results, report)
    # What all of it took is known once the pictures are drawn, which takes longest here.
    run.record(Stage.WRITE, monotonic() - begun)
    report = report.model_copy(update={"stages": run.state.finished, "seconds": run.seconds()})
    report = report.model_copy(update={"cost": _cost(run, report)})
    artifacts = [model_artifact(results.model_path)]
    artifacts += write_report(report, pictures, run.out)
    run.journal.emit(ResultEvent(artifacts=artifacts))
    return report


def _screening_of(run: Run, results: Results) -> Screening | None:
    if results.screened is None:
        return None
    if not run.group.is_leader:
        return results.screened.record
    return results.screened.retold(results.loaded, run.inputs, run.spec.seed, run.device)


def _draw(run: Run, results: Results, report: Report) -> dict[str, bytes]:
    # Matplotlib takes most of a second to import, and a run that fails never needs it.
    from sanitizer.report.plots import (
        plot_before_after,
        plot_curves,
        plot_durability,
        plot_examples,
        plot_inspection,
        plot_screening,
    )

    pictures = {
        "curves.png": plot_curves(report),
        "before_after.png": plot_before_after(report),
    }
    if (inspections := report.inspections) is not None:
        pictures["inspection.png"] = plot_inspection(
            inspections,
            [
                looks_of(inspections.before, results.found_before),
                looks_of(inspections.after, results.found_after),
            ],
            run.inputs.evaluation.class_names,
        )
    if report.durability is not None and report.durability.probes:
        pictures["durability.png"] = plot_durability(report.durability)
    if (screened := results.screened) is not None and screened.record.left_out:
        pictures["screening.png"] = plot_screening(
            screened.pictured(results.loaded),
            run.inputs.evaluation.class_names,
        )
    examples = with_first_trigger(run, run.inputs.examples)
    if len(examples):
        pictures["examples.png"] = plot_examples(
            run.inputs.examples.numpy(),
            examples.numpy(),
            run.inputs.example_labels.tolist(),
            run.state.example_predictions,
            predict(run.network, examples, run.device).tolist(),
            run.inputs.evaluation.class_names,
        )
    return pictures


def _cost(run: Run, report: Report) -> Cost:
    cuda = run.device.type == "cuda"
    curve = run.inputs.curve
    return measure_cost(
        report,
        device="cuda" if cuda else "cpu",
        processor=device_name(run.device) if cuda else processor_name(),
        threads=torch.get_num_threads(),
        start_seconds=run.start_seconds,
        curve_images=0 if curve is None else len(curve.labels),
        curve_seconds=run.state.curve_seconds,
        peak_host_bytes=peak_resident_bytes(),
        peak_device_bytes=torch.cuda.max_memory_reserved(run.device) if cuda else None,
    )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
