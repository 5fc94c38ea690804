"""Measures the network of a run: before, after, and while it is trained."""

from time import monotonic

import torch
from torch import Tensor

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.evaluation.predict import predict
from sanitizer.events import MetricEvent, Stage
from sanitizer.report.model import Evaluation
from sanitizer.stages.run import Run


def measure_suspect(run: Run) -> None:
    """Measures the model as it came, and what it says to the pictures of the report."""
    examples = with_first_trigger(run, run.inputs.examples)
    if len(examples):
        run.network.eval()
        answers = predict(run.network, examples, run.device)
        run.state.example_predictions = answers.tolist()
    run.state.before = measure(run, Stage.BASELINE, "Measuring the model as it came.")
    run.save()


def measure(run: Run, stage: Stage, message: str) -> Evaluation:
    """ACC, and ASR and RA of each trigger, of the network as it stands."""
    run.journal.begin(stage, message)
    begun = monotonic()
    evaluation = _evaluated(run, run.network, run.inputs.evaluation, stage)
    run.journal.emit(MetricEvent(stage=stage, values=figures_of(evaluation)))
    run.record(stage, monotonic() - begun)
    return evaluation


def with_first_trigger(run: Run, images: Tensor) -> Tensor:
    """Without triggers, none of the images."""
    return run.inputs.triggers[0].apply(images) if run.inputs.triggers else images[:0]


def measure_curve(run: Run, network: torch.nn.Module, stage: Stage) -> dict[str, float]:
    """Figures on the curve's images, for people to look at; nothing is chosen by them."""
    if run.inputs.curve is None:
        return {}
    begun = monotonic()
    evaluation = _evaluated(run, network, run.inputs.curve, stage)
    run.state.curve_seconds += monotonic() - begun
    return figures_of(evaluation)


def figures_of(evaluation: Evaluation) -> dict[str, float]:
    """By the names that events give them."""
    values = {"accuracy": evaluation.accuracy.value}
    for probe in evaluation.probes:
        values[f"asr.{probe.name}"] = probe.asr.value
        values[f"ra.{probe.name}"] = probe.ra.value
    return values


def _evaluated(run: Run, network: torch.nn.Module, images: ImageSet, stage: Stage) -> Evaluation:
    return evaluate(
        network,
        images,
        run.inputs.triggers,
        num_classes=run.inputs.suspect.num_classes,
        device=run.device,
        draft=run.precision,
        on_images=lambda images: run.progress.add(stage, images),
        group=run.group,
    )
