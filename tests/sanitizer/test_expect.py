"""Runs whose model expects other images than it gets."""

from pathlib import Path

import numpy as np
import pytest

from sanitizer.events import Event, MetricEvent, StageEvent, WarningEvent
from sanitizer.pipeline import sanitize
from sanitizer.report.model import Report, Verdict
from sanitizer.spec import SanitizeSpec
from sanitizer.stages.expect import why_prepared_so
from tests.sanitizer.builders import CORNER_PROBE, QUICK_TRAINING, digits
from tests.sanitizer.jobs import digits_job


class Interrupted(Exception):
    pass


def spec_for(folder: Path, **changes: object) -> SanitizeSpec:
    return digits_job(
        folder,
        clean=range(800, 1100),
        evaluation=range(1100, 1500),
        method={"name": "finetune", "training": QUICK_TRAINING},
        policy={"max_asr": 1.0, "max_accuracy_drop": 1.0},
        probes=[CORNER_PROBE],
        **changes,
    )


def run(spec: SanitizeSpec, folder: Path) -> tuple[Report, list[Event]]:
    events: list[Event] = []
    return sanitize(spec, folder / "out", folder / "work", events.append), events


def warnings(report: Report) -> dict[str, str]:
    return {warning.code: warning.message for warning in report.warnings}


def test_a_needless_normalisation_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    model = str(tmp_path / "in" / "suspect.safetensors")
    prepared = {"path": model, "input_size": [8, 8], "mean": [0.5], "std": [0.5]}
    report, events = run(spec_for(tmp_path / "in", model=prepared), tmp_path)

    told = warnings(report)["preparation_suspected"]
    assert "with mean 0 and std 1 (here: mean 0.5, std 0.5)" in told
    assert report.decision.verdict is Verdict.UNDECIDED
    assert told in report.decision.reasons
    warned = next(
        n
        for n, e in enumerate(events)
        if isinstance(e, WarningEvent) and e.code == "preparation_suspected"
    )
    trained = next(
        n for n, e in enumerate(events) if isinstance(e, StageEvent) and e.stage == "finetune"
    )
    assert warned < trained


@pytest.mark.parametrize(
    ("architecture", "value", "told"),
    [("googlenet", 0.5, True), ("googlenet", 0.0, False), ("resnet18", 0.5, False)],
)
def test_a_network_that_converts_its_images_explains_their_preparation(
    architecture: str, value: float, told: bool
) -> None:
    said = why_prepared_so(architecture, ((value,) * 3, (0.5,) * 3))
    assert ("`transform_input`" in said) == told


def test_images_that_the_model_does_not_expect_are_not_screened(tmp_path: Path) -> None:
    """What it makes of them would accuse a clean model."""
    model = str(tmp_path / "in" / "suspect.safetensors")
    prepared = {"path": model, "input_size": [8, 8], "mean": [0.5], "std": [0.5]}
    report, events = run(spec_for(tmp_path / "in", model=prepared, screen=True), tmp_path)

    assert report.screening is None
    assert "screen" not in {event.stage for event in events if isinstance(event, StageEvent)}
    assert "are not screened" in warnings(report)["preparation_suspected"]

    report, _ = run(spec_for(tmp_path / "in", screen=True), tmp_path / "right")
    assert report.screening is not None


def test_classes_in_another_order_are_told_with_the_right_one(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "in")
    for name, start, end in (("clean", 800, 1100), ("evaluation", 1100, 1500)):
        images, labels = digits(start, end)
        np.savez(tmp_path / "in" / f"{name}.npz", images=images, labels=9 - labels)
    report, _ = run(spec, tmp_path)

    assert (
        "in this order: 9, 8, 7, 6, 5, 4, 3, 2, 1, 0." in warnings(report)["class_order_suspected"]
    )
    assert report.decision.verdict is Verdict.UNDECIDED
    assert any("rose from" in reason for reason in report.decision.reasons)


def test_a_model_that_gets_what_it_expects_is_allowed(tmp_path: Path) -> None:
    report, _ = run(spec_for(tmp_path / "in"), tmp_path)

    assert not {"preparation_suspected", "class_order_suspected"} & set(warnings(report))
    assert report.decision.verdict is Verdict.ALLOWED


def test_what_was_found_is_told_again_by_a_run_that_goes_on(tmp_path: Path) -> None:
    model = str(tmp_path / "in" / "suspect.safetensors")
    prepared = {"path": model, "input_size": [8, 8], "mean": [0.5], "std": [0.5]}
    spec = spec_for(tmp_path / "in", model=prepared)

    def interrupt(event: Event) -> None:
        if isinstance(event, MetricEvent) and event.stage == "finetune":
            raise Interrupted

    with pytest.raises(Interrupted):
        sanitize(spec, tmp_path / "out", tmp_path / "work", interrupt)
    resumed, _ = run(spec, tmp_path)

    assert resumed.resumed == 1
    straight, _ = run(spec, tmp_path / "straight")
    assert warnings(resumed)["preparation_suspected"] in warnings(straight).values()
    assert resumed.decision == straight.decision


def test_a_class_of_most_images_makes_no_model_a_stranger(tmp_path: Path) -> None:
    """Nearly all images are of one class, of which it gets as many right as of the others."""
    spec = spec_for(tmp_path / "in")
    images, labels = digits(0, 1500)
    rare = np.concatenate([np.flatnonzero(labels == digit)[:3] for digit in range(1, 10)])
    kept = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 0), rare])
    np.savez(tmp_path / "in" / "evaluation.npz", images=images[kept], labels=labels[kept])
    report, _ = run(spec, tmp_path)

    assert report.before.accuracy.value > 0.9
    assert "suspect_near_chance" not in warnings(report)


def test_of_images_of_one_class_nothing_is_told(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "in")
    images, labels = digits(0, 1500)
    ones = labels == 1
    np.savez(tmp_path / "in" / "evaluation.npz", images=images[ones], labels=labels[ones])
    report, _ = run(spec, tmp_path)

    assert "suspect_near_chance" not in warnings(report)
