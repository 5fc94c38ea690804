from typing import Any

import pytest

from sanitizer.exits import Exit
from sanitizer.report.model import Verdict
from service.cli.answers import Figures, JobAnswer, ProbeFigures
from service.cli.following import exit_of, show_end
from service.cli.tables import figure_rows

FIGURES = {"accuracy": 0.9, "probes": [{"name": "corner", "asr": 0.5, "ra": 0.25}]}


def make_job(**changes: Any) -> JobAnswer:
    return JobAnswer.read(
        {
            "id": "job_1",
            "name": None,
            "status": "succeeded",
            "verdict": "allowed",
            "stage": "write",
            "progress": 1.0,
            "waiting_reason": None,
            "error": None,
            "summary": {
                "architecture": "wrn-16-1",
                "before": FIGURES,
                "after": FIGURES,
                "reasons": ["All is well."],
                "seconds": 75.0,
            },
            "method": "argd",
            "result_model_id": "model_2",
            "created_at": "2025-01-01T00:00:00.000Z",
            "field_of_a_newer_server": 1,
        }
        | changes
    )


def failed(code: str) -> dict[str, Any]:
    error = {"code": code, "message": "Why.", "data": {}}
    return {"status": "failed", "verdict": None, "error": error, "summary": None}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, Exit.ALLOWED),
        ({"verdict": "undecided"}, Exit.ALLOWED),
        ({"verdict": "blocked"}, Exit.BLOCKED),
        ({"status": "cancelled", "verdict": None, "summary": None}, Exit.ERROR),
        (failed("internal_error"), Exit.ERROR),
        (failed("a_code_of_a_newer_server"), Exit.ERROR),
        (failed("unsafe_checkpoint"), Exit.UNSUPPORTED),
        (failed("architecture_unknown"), Exit.UNSUPPORTED),
        (failed("class_mismatch"), Exit.UNSUPPORTED),
    ],
)
def test_the_exit_code_tells_how_a_job_ended(changes: dict[str, Any], code: Exit) -> None:
    assert exit_of(make_job(**changes)) is code
    undecided = changes.get("verdict") == "undecided"
    assert exit_of(make_job(**changes), strict=True) is (Exit.BLOCKED if undecided else code)


def test_the_end_of_a_job_shows_figures_verdict_and_reasons(
    capfd: pytest.CaptureFixture[str],
) -> None:
    show_end(make_job(verdict=Verdict.BLOCKED, name="[red]"))
    out, err = capfd.readouterr()
    for part in ("ACC", "90.00%", "ASR  corner", "50.00%", "+0.00", "blocked", "All is well."):
        assert part in out
    assert "1 min 15 s" in err
    assert "sanitizer download job_1" in err


def test_the_end_of_a_failed_job_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    show_end(make_job(**failed("empty_class"), result_model_id=None))
    assert capfd.readouterr().err.splitlines() == ["The job failed: empty_class", "Why."]


def test_a_queued_job_says_what_it_waits_for(capfd: pytest.CaptureFixture[str]) -> None:
    waiting = {"summary": None, "result_model_id": None, "waiting_reason": "no worker runs"}
    show_end(make_job(status="queued", **waiting))
    assert capfd.readouterr().err == "The job is queued: no worker runs.\n"


def test_a_probe_that_was_measured_once_only_is_left_out_of_the_table() -> None:
    before = Figures(accuracy=0.5, probes=[ProbeFigures(name="a", asr=1, ra=0)])
    after = Figures(accuracy=0.5, probes=[])
    assert figure_rows(before, after) == [("ACC  clean accuracy", 0.5, 0.5)]
