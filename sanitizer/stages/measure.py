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
from sanitizer.warning_codes import WarningCode

LEAST_KNOWN = 0.1
"""Share of the way from one answer for all to all right that a model must have gone."""


def measure_suspect(run: Run) -> None:
    """Measures the model as it came, and what it says to the pictures of the report."""
    examples = with_first_trigger(run, run.inputs.examples)
    if len(examples):
        run.network.eval()
        answers = predict(run.network, examples, run.device)
        run.state.example_predictions = answers.tolist()
    run.state.before = measure(run, Stage.BASELINE, "Measuring the model as it came.")
    measured = run.seconds_by_stage()[Stage.BASELINE]
    run.record(Stage.BASELINE, measured + run.state.expectation_seconds)
    run.save()


def chance_warning(run: Run) -> tuple[str, str] | None:
    """Code and words where the suspect model knows next to nothing of the images: the fault is
    rarely its own."""
    if not knows_little(run):
        return None
    (classes, mean), names = _recall(run), run.inputs.evaluation.class_names
    size = " x ".join(map(str, run.inputs.suspect.input_size))
    return (
        WarningCode.SUSPECT_NEAR_CHANCE,
        f"The model as it came gets {100 * mean:.1f}% of the evaluation images right, on average "
        f"over their classes, where one answer for all of them would get {100 / classes:.1f}%. Are "
        "the images what it expects? `input_size`, `mean` and `std` say how they are prepared "
        f"(here {size} pixels), and its classes must have "
        f"the order of the data's: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}.",
    )


def knows_little(run: Run) -> bool:
    """Whether the suspect model is hardly better than one answer for all images.

    By the mean over classes of what it gets right of each, lest a class of most images decides; of
    images of one class nothing is told.
    """
    classes, mean = _recall(run)
    return classes > 1 and mean <= (1 + LEAST_KNOWN * (classes - 1)) / classes


def _before(run: Run) -> Evaluation:
    if run.state.before is None:
        raise RuntimeError("the suspect model is measured before its figures are judged")
    return run.state.before


def _recall(run: Run) -> tuple[int, float]:
    """How many classes the evaluation images have, and the mean of the shares of each that the
    suspect model gets right."""
    shares = [each.value for each in _before(run).accuracy_per_class.values() if each.total]
    return len(shares), sum(shares) / max(1, len(shares))


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
