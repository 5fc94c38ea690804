import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from service.cli.progress import Pace, RunView, bytes_bar

START = datetime(2025, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_the_rest_is_estimated_from_the_part_that_is_done() -> None:
    pace = Pace()
    pace.note(0.1, at(0), now=100)
    pace.note(0.3, at(10), now=110)
    assert pace.remaining(110) == pytest.approx(35)
    assert pace.remaining(120) == pytest.approx(25)
    assert pace.remaining(500) == 0


def test_a_replayed_stream_gives_the_estimate_of_the_events_own_times() -> None:
    pace = Pace()
    pace.note(0.0, at(0), now=7)
    pace.note(0.5, at(60), now=7)
    assert pace.remaining(7) == pytest.approx(60)


def test_another_attempt_is_estimated_afresh() -> None:
    pace = Pace()
    pace.note(0.0, at(0), now=0)
    pace.note(0.8, at(8), now=8)
    pace.note(0.1, at(20), now=20)
    assert pace.remaining(20) is None


def view_into(file: io.StringIO, *, terminal: bool) -> RunView:
    console = Console(file=file, force_terminal=terminal, width=100, highlight=False)
    return RunView(console, clock=lambda: 0.0)


def feed_a_run(view: RunView) -> None:
    view.wait("no worker is running")
    view.wait("no worker is running")
    view.feed("status", {"status": "running"}, at(0))
    view.feed("stage", {"stage": "teacher", "message": "Fine-tuning the teacher"}, at(0))
    progress = {"stage": "teacher", "fraction": 0.25, "epoch": 2, "epochs": 10}
    view.feed("progress", {**progress, "step": None, "steps": None}, at(1))
    values = {"loss": 0.5, "accuracy": 0.75, "asr.corner": 0.5, "learning_rate": 0.1}
    view.feed("metric", {"stage": "teacher", "epoch": 2, "values": values}, at(2))
    view.feed("warning", {"code": "x", "message": "few images"}, at(2))


def test_without_a_terminal_each_stage_and_epoch_is_a_line() -> None:
    file = io.StringIO()
    with view_into(file, terminal=False) as view:
        feed_a_run(view)
    assert file.getvalue().splitlines() == [
        "Waiting: no worker is running",
        "teacher: Fine-tuning the teacher",
        "teacher epoch 2: loss 0.5  accuracy 75.00%  asr.corner 50.00%",
        "Warning: few images",
    ]


def test_on_a_terminal_stage_epoch_share_and_figures_are_drawn() -> None:
    file = io.StringIO()
    with view_into(file, terminal=True) as view:
        feed_a_run(view)
    text = file.getvalue()
    for part in ("teacher", "25%", "epoch 2/10", "loss 0.5", "few images"):
        assert part in text


def test_why_a_job_waits_is_told_whole_on_a_narrow_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, soft_wrap=True)
    reason = "No worker has reported in the last 60 s; the job runs as soon as one starts."
    with RunView(console, clock=lambda: 0.0) as view:
        view.wait(reason)
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).split()
    assert " ".join(words).endswith(f"Waiting (0 s): {reason}")


def test_what_has_no_figures_for_people_is_no_line() -> None:
    file = io.StringIO()
    view = view_into(file, terminal=False)
    view.feed("metric", {"stage": "go_back", "epoch": None, "values": {"gone": 0.0}}, at(1))
    view.feed("metric", {"stage": "seek", "epoch": None, "values": {"rate.patch": 0.8}}, at(1))
    assert file.getvalue() == "seek: rate.patch 80.00%\n"


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    file = io.StringIO()
    with view_into(file, terminal=False) as view:
        view.feed("stage", {"stage": "load", "message": "\x1b[2J[red]x[/]"}, at(0))
    assert file.getvalue() == "load: \ufffd[2J[red]x[/]\n"


def test_a_bar_without_a_terminal_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with bytes_bar("Uploading [x]", 10) as on_bytes:
        on_bytes(10)
    assert capfd.readouterr() == ("", "")


def test_a_retuning_is_told_by_its_rates() -> None:
    file = io.StringIO()
    view = view_into(file, terminal=False)
    values = {"retuned_accuracy": 0.75, "poisoned_asr.grid": 0.3, "control_asr.grid": 0.04}
    view.feed("metric", {"stage": "retune", "epoch": None, "values": values}, at(1))
    assert file.getvalue() == (
        "retune: retuned_accuracy 75.00%  poisoned_asr.grid 30.00%  control_asr.grid 4.00%\n"
    )


def test_a_search_for_triggers_is_told_by_its_strongest_class() -> None:
    file = io.StringIO()
    view = view_into(file, terminal=False)
    values = {"estimated_asr.0": 0.04, "estimated_asr.3": 0.98, "anomaly": 4.51}
    view.feed("metric", {"stage": "inspect", "epoch": None, "values": values}, at(1))
    assert file.getvalue() == "inspect: estimated_asr.3 98.00%, the highest  anomaly 4.5\n"


def test_a_choice_between_methods_is_told_by_what_it_went_by() -> None:
    file = io.StringIO()
    view = view_into(file, terminal=False)
    values = {"accuracy.argd": 0.84, "residual.argd": 0.02}
    view.feed("metric", {"stage": "choose", "epoch": None, "values": values}, at(1))
    assert file.getvalue() == "choose: accuracy.argd 84.00%  residual.argd 2.00%\n"
