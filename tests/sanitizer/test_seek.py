"""Runs that look for triggers which the suspect model falls for, before they train it."""

from pathlib import Path
from typing import Any

import pytest

from sanitizer.events import Event, MetricEvent, ProgressEvent, StageEvent
from sanitizer.pipeline import sanitize
from sanitizer.spec import SanitizeSpec
from tests.sanitizer.builders import QUICK_TRAINING
from tests.sanitizer.jobs import digits_job

HARDENING = {"rho": 0, "random_triggers": True, "found_share": 0.5, "trigger_candidates": 2}


class Interrupted(Exception):
    pass


def spec_for(folder: Path, **hardening: Any) -> SanitizeSpec:
    """A job of a method that searches, on a model that tells most digits."""
    method = {
        "name": "argd",
        "teacher": QUICK_TRAINING,
        "student": QUICK_TRAINING,
        "hardening": {**HARDENING, **hardening},
        "student_hardening": {**HARDENING, **hardening},
    }
    return digits_job(folder, clean=range(800, 960), evaluation=range(1000, 1200), method=method)


def stages(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, StageEvent)]


def test_the_search_is_a_stage_before_the_training_and_says_what_misleads(tmp_path: Path) -> None:
    events: list[Event] = []
    report = sanitize(spec_for(tmp_path / "in"), tmp_path / "out", tmp_path / "w", events.append)

    begun = stages(events)
    assert begun.index("seek") + 1 == begun.index("teacher")
    record = next(stage for stage in report.stages if stage.stage == "seek")
    assert set(record.values) == {f"rate.{name}" for name in ("grating", "patch", "warp", "veil")}
    assert all(0 <= rate <= 1 for rate in record.values.values())
    assert report.misleading
    assert {each.kind for each in report.misleading} == {"grating", "patch", "warp", "veil"}
    for each in report.misleading:
        small_images = {"grating": None, "patch": 0.9, "warp": 0.97, "veil": 0.97}
        assert each.speaks_from == small_images[each.kind]
    rates = [each.before.value for each in report.misleading]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == max(record.values.values())
    told = next(e for e in events if isinstance(e, MetricEvent) and e.stage == "seek")
    assert dict(told.values) == dict(record.values)
    fractions = [event.fraction for event in events if isinstance(event, ProgressEvent)]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(("easy", "goes"), [(1.0, True), (0.5, False)])
def test_nobody_goes_back_where_the_task_is_easy(
    easy: float, goes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanitizer.stages.train.EASY", easy)
    events: list[Event] = []
    report = sanitize(spec_for(tmp_path / "in"), tmp_path / "out", tmp_path / "w", events.append)

    assert 0.5 <= report.before.accuracy.value < 1
    record = next(stage for stage in report.stages if stage.stage == "go_back")
    # How far, or what would have come back on the shortest way.
    assert any(record.values.values()) == goes


def test_nobody_searches_where_no_share_is_asked_for(tmp_path: Path) -> None:
    events: list[Event] = []
    spec = spec_for(tmp_path / "in", found_share=0)
    report = sanitize(spec, tmp_path / "out", tmp_path / "w", events.append)

    assert "seek" not in stages(events)
    assert report.misleading is None


@pytest.mark.parametrize("at", ["teacher", "distil"])
def test_an_interrupted_run_does_not_search_again_and_ends_in_the_same_bytes(
    tmp_path: Path, at: str
) -> None:
    spec = spec_for(tmp_path / "in")
    straight = sanitize(spec, tmp_path / "straight", tmp_path / "w1", lambda _event: None)
    again: list[Event] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, MetricEvent) and event.stage == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        sanitize(spec, tmp_path / "out", tmp_path / "w2", interrupt)
    resumed = sanitize(spec, tmp_path / "out", tmp_path / "w2", again.append)

    assert "seek" not in stages(again)
    assert resumed.output.sha256 == straight.output.sha256
    assert resumed.misleading == straight.misleading
