"""Trainings whose learning rates a network does not bear."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sanitizer.cost.workload import Measured
from sanitizer.errors import TrainingDiverged
from sanitizer.events import Event, ProgressEvent, StageEvent
from sanitizer.pipeline import sanitize
from sanitizer.report.model import Report
from sanitizer.spec import SanitizeSpec
from tests.sanitizer.builders import QUICK_TRAINING
from tests.sanitizer.jobs import digits_job
from tests.sanitizer.methods.networks import fresh, trained

TOO_MUCH = 2.0
"""As a learning rate: the network below unlearns at it, and bears some part of it."""
HARSH: dict[str, Any] = {
    **QUICK_TRAINING,
    "phases": [{"epochs": 4, "learning_rate": TOO_MUCH}],
    "crop_padding": 0,
}
GENTLE: dict[str, Any] = {**HARSH, "phases": [{"epochs": 4, "learning_rate": 0.01}]}


class Interrupted(Exception):
    pass


def spec_for(folder: Path, **method: Any) -> SanitizeSpec:
    """A job on a model that tells most digits."""
    config = {"name": "argd", "teacher": HARSH, "student": GENTLE, **method}
    return digits_job(folder, clean=range(800, 960), evaluation=range(1000, 1400), method=config)


def run(
    spec: SanitizeSpec, out: Path, on_event: Callable[[Event], None] = lambda _event: None
) -> tuple[Report, list[Event]]:
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        on_event(event)

    return sanitize(spec, out, out / "work", emit), events


def scales(report: Report) -> list[float]:
    return [stage.values.get("scale", 1) for stage in report.stages]


def model_in(folder: Path) -> bytes:
    (path,) = folder.glob("*.safetensors")
    return path.read_bytes()


def test_what_loses_the_accuracy_is_begun_again_more_gently(tmp_path: Path) -> None:
    report, events = run(spec_for(tmp_path / "in"), tmp_path / "out")

    teacher = next(stage for stage in report.stages if stage.stage == "teacher")
    scale = teacher.values["scale"]
    assert scale in (1 / 4, 1 / 16, 1 / 64)
    rates = [epoch.values["learning_rate"] for epoch in teacher.epochs]
    assert rates == [TOO_MUCH * scale] * 4
    told = [e.message for e in events if isinstance(e, StageEvent) and e.stage == "teacher"]
    assert "begins again, at 1/4 of the learning rates" in told[1]
    assert teacher.values["lost_seconds"] > 0
    assert teacher.seconds == pytest.approx(
        sum(epoch.values["seconds"] for epoch in teacher.epochs), abs=0.01
    )
    assert Measured.of_report(report) is None  # its times say nothing of other jobs
    (warning,) = report.warnings
    assert warning.code == "backed_off"
    assert f"1/{round(1 / scale)}" in warning.message
    assert report.after.accuracy.value > 0.8 * report.before.accuracy.value
    fractions = [event.fraction for event in events if isinstance(event, ProgressEvent)]
    assert fractions == sorted(fractions)


def test_the_student_goes_on_as_gently_as_its_teacher(tmp_path: Path) -> None:
    report, _events = run(spec_for(tmp_path / "in"), tmp_path / "out")
    teacher, student = (
        next(each for each in report.stages if each.stage == stage)
        for stage in ("teacher", "distil")
    )
    assert student.values["scale"] == teacher.values["scale"]


def test_what_keeps_the_accuracy_runs_as_it_was_asked_for(tmp_path: Path) -> None:
    report, _events = run(spec_for(tmp_path / "in", teacher=GENTLE), tmp_path / "out")
    assert all("scale" not in stage.values for stage in report.stages)
    assert report.warnings == []


def test_who_does_not_want_it_gets_what_was_asked_for(tmp_path: Path) -> None:
    report, _events = run(
        spec_for(tmp_path / "in", back_off=False, suspect_share=0), tmp_path / "out"
    )
    teacher = next(stage for stage in report.stages if stage.stage == "teacher")
    assert [epoch.values["learning_rate"] for epoch in teacher.epochs] == [TOO_MUCH] * 4
    assert report.after.accuracy.value < 0.7 * report.before.accuracy.value


def test_a_loss_without_bounds_backs_off_too_and_is_an_error_in_the_end(tmp_path: Path) -> None:
    tries: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StageEvent) and event.stage == "teacher":
            tries.append(event.message)

    spec = spec_for(tmp_path / "in")
    state = trained().state_dict()
    state["fc.weight"] *= 1e37
    save_file(state, spec.model.path)
    with pytest.raises(TrainingDiverged, match=r"learning rate \(method\.teacher\.phases\)\."):
        run(spec, tmp_path / "out", on_event)
    assert len(tries) == 4
    assert "1/64" in tries[-1]


def test_a_network_that_asks_weights_for_their_version_begins_again_too(tmp_path: Path) -> None:
    once = {**HARSH, "phases": [{"epochs": 1, "learning_rate": TOO_MUCH}]}
    spec = spec_for(tmp_path / "in", preset="paper", back_off=True, teacher=once, student=once)
    network = fresh("mnasnet0_5")
    with torch.no_grad():
        network.get_parameter("classifier.1.weight").mul_(1e37)
    save_file(network.state_dict(), spec.model.path)
    messages: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StageEvent):
            messages.append(event.message)

    with pytest.raises(TrainingDiverged):
        run(spec, tmp_path / "out", on_event)
    assert sum("begins again" in message for message in messages) == 3


@pytest.mark.parametrize("moment", ["begins again", "after it"])
def test_a_run_broken_off_after_it_backed_off_ends_in_the_same_bytes(
    tmp_path: Path, moment: str
) -> None:
    spec = spec_for(tmp_path / "in")
    whole, _events = run(spec, tmp_path / "whole")

    def on_event(event: Event) -> None:
        if moment == "begins again" and isinstance(event, StageEvent):
            if "begins again" in event.message:
                raise Interrupted
        elif isinstance(event, StageEvent) and event.stage == "distil":
            raise Interrupted

    with pytest.raises(Interrupted):
        run(spec, tmp_path / "out", on_event)
    again, _events = run(spec, tmp_path / "out")
    assert model_in(tmp_path / "out") == model_in(tmp_path / "whole")
    assert [w.code for w in again.warnings] == ["resumed", "backed_off"]
    assert scales(again) == scales(whole)
