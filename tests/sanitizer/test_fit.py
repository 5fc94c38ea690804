"""Augmentation that a model does not bear, and models that do not know the images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sanitizer.events import Event, MetricEvent, ProgressEvent, StageEvent
from sanitizer.pipeline import sanitize
from sanitizer.report.model import Report
from sanitizer.spec import SanitizeSpec
from tests.sanitizer.builders import QUICK_TRAINING, digits, write_spec
from tests.sanitizer.jobs import digits_job

AS_FOR_PHOTOGRAPHS: dict[str, Any] = {
    **QUICK_TRAINING,
    "phases": [{"epochs": 2, "learning_rate": 0.01}],
    "crop_padding": 4,
    "horizontal_flip": True,
}


class Interrupted(Exception):
    pass


def spec_for(folder: Path, **changes: Any) -> SanitizeSpec:
    """A job on a model that tells most digits."""
    return digits_job(folder, clean=range(800, 1100), evaluation=range(1100, 1500), **changes)


def finetuned(folder: Path, *, fit: bool, **changes: Any) -> tuple[Report, list[Event]]:
    events: list[Event] = []
    training = {**AS_FOR_PHOTOGRAPHS, "fit_augmentation": fit}
    spec = spec_for(folder / "in", method={"name": "finetune", "training": training}, **changes)
    return sanitize(spec, folder / "out", folder / "work", events.append), events


def warnings(report: Report) -> dict[str, str]:
    return {warning.code: warning.message for warning in report.warnings}


def test_what_the_model_does_not_bear_is_left_out_and_told(tmp_path: Path) -> None:
    fitted, events = finetuned(tmp_path / "fitted", fit=True)
    as_told, _ = finetuned(tmp_path / "as-told", fit=False)

    told = warnings(fitted)["augmentation_fitted"]
    assert "when they are mirrored" in told
    assert "without mirrored images" in told
    assert "augmentation_not_borne" not in warnings(fitted)
    training = next(stage for stage in fitted.stages if stage.stage == "finetune")
    assert training.values["horizontal_flip"] == 0
    assert training.values["crop_padding"] < 4
    looked = next(e for e in events if isinstance(e, MetricEvent) and e.stage == "fit")
    assert looked.values["kept_flipped"] < 0.8

    assert "method.training may unteach it" in warnings(as_told)["augmentation_not_borne"]
    assert "augmentation_fitted" not in warnings(as_told)
    assert fitted.after.accuracy.value > as_told.after.accuracy.value + 0.05


def test_a_job_that_names_no_method_keeps_a_model_of_digits(tmp_path: Path) -> None:
    """By its augmentation alone it would unlearn them, and back off until it changed nothing."""
    path = write_spec(tmp_path / "in", method={"name": "argd"})
    method = SanitizeSpec.model_validate_json(path.read_bytes()).method
    spec = spec_for(tmp_path / "in", method=method.model_dump(mode="json"))
    report = sanitize(spec, tmp_path / "out", tmp_path / "work", lambda _event: None)

    assert "augmentation_fitted" in warnings(report)
    assert "backed_off" not in warnings(report)
    assert report.after.accuracy.value > report.before.accuracy.value - 0.03


@pytest.mark.parametrize(("easy", "batch_size"), [(16, 16), (None, 32)])
def test_an_easy_task_is_trained_in_more_steps(
    tmp_path: Path, easy: int | None, batch_size: int
) -> None:
    """Nothing is changed about the images, and the model is looked at all the same."""
    training = {**QUICK_TRAINING, "crop_padding": 0, "easy_batch_size": easy}
    events: list[Event] = []
    spec = digits_job(
        tmp_path / "in",
        clean=range(0, 320),  # which the model was trained on
        evaluation=range(1100, 1500),
        method={"name": "finetune", "training": training},
    )
    report = sanitize(spec, tmp_path / "out", tmp_path / "work", events.append)

    told = [e for e in events if isinstance(e, ProgressEvent) and e.stage == "finetune"]
    steps = {event.steps for event in told if event.steps}
    assert steps == {320 // batch_size}
    looked = [stage for stage in report.stages if stage.stage == "fit"]
    assert len(looked) == bool(easy)
    begun = next(e for e in events if isinstance(e, StageEvent) and e.stage == "finetune")
    assert ("in batches of 16 since the model's task is easy" in begun.message) == bool(easy)
    if easy:
        assert looked[0].values["accuracy"] >= 0.95
        trained = next(stage for stage in report.stages if stage.stage == "finetune")
        assert trained.values["batch_size"] == easy


def test_what_was_seen_is_kept_when_the_run_is_interrupted(tmp_path: Path) -> None:
    training = {**AS_FOR_PHOTOGRAPHS, "fit_augmentation": True}
    spec = spec_for(tmp_path / "in", method={"name": "finetune", "training": training})
    straight = sanitize(spec, tmp_path / "straight", tmp_path / "w1", lambda _event: None)
    again: list[Event] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, MetricEvent) and event.stage == "finetune":
            raise Interrupted

    with pytest.raises(Interrupted):
        sanitize(spec, tmp_path / "out", tmp_path / "w2", interrupt)
    resumed = sanitize(spec, tmp_path / "out", tmp_path / "w2", again.append)

    assert "fit" not in {event.stage for event in again if isinstance(event, StageEvent)}
    assert warnings(resumed)["augmentation_fitted"] == warnings(straight)["augmentation_fitted"]
    assert resumed.output.sha256 == straight.output.sha256


def test_a_model_that_knows_nothing_of_the_images_is_told_of(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "in")
    images, labels = digits(1100, 1500)
    np.savez(tmp_path / "in" / "evaluation.npz", images=images, labels=(labels + 1) % 10)
    report = sanitize(spec, tmp_path / "out", tmp_path / "work", lambda _event: None)

    told = warnings(report)["suspect_near_chance"]
    assert "one answer for all" in told
    assert "8 x 8 pixels" in told
    assert "fit" not in {stage.stage for stage in report.stages}


def test_a_model_that_knows_its_images_is_not(tmp_path: Path) -> None:
    report = sanitize(
        spec_for(tmp_path / "in"), tmp_path / "out", tmp_path / "work", lambda _event: None
    )

    assert "suspect_near_chance" not in warnings(report)
