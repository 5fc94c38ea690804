import json
from pathlib import Path

import pytest

from benchmarks import inspection_calibration
from benchmarks.inspection_calibration import DATA, Backdoor, Case, Cell, Data, backdoor_of, main
from benchmarks.inspection_report import area_under_curve, constants, summary, threshold_for
from sanitizer.report.model import (
    ACCUSED_IN_TRIAL,
    FOUND_IN_TRIAL,
    SUSPICIOUS_ANOMALY,
)

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "inspection.json"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One pair of small networks, hardly trained and hardly searched."""
    monkeypatch.setitem(DATA, "digits", Data(8, 1, 10, trained=200, epochs=1, batch_size=50))
    cells = {
        "development": (Cell("digits", "wrn-10-1", "patch", 1),),
        "final": (Cell("digits", "wrn-10-1", "blend", 2),),
    }
    monkeypatch.setattr(inspection_calibration, "CELLS", cells)
    monkeypatch.setattr(inspection_calibration, "MIN_ASR", 0)
    monkeypatch.setattr(inspection_calibration, "MAX_DROP", 1)
    monkeypatch.setattr("sanitizer.evaluation.inversion.SEARCH_STEPS", 2)
    # It sets up the whole process, and so the tests after this one.
    monkeypatch.setattr(inspection_calibration, "prepare_process", lambda: None)
    return ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]


def test_pairs_are_trained_and_searched_once_and_make_a_page(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("development", "final"):
        main([*command, "--split", split])
    path = tmp_path / "work" / "final.json"
    first = json.loads(path.read_bytes())
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/models").iterdir()}
    main([*command, "--split", "final", "--render"])

    again = json.loads(path.read_bytes())
    assert [{**each, "seconds": 0} for each in again] == [{**each, "seconds": 0} for each in first]
    assert models == {path: path.stat().st_mtime_ns for path in models}
    assert [each["recipe"]["backdoor"] is None for each in first] == [True, False]
    classes = first[1]["inspection"]["classes"]
    assert set(classes) == {str(n) for n in range(10)}
    assert set(classes["0"]) >= {"patch", "pattern", "features", "estimated_asr"}
    written = json.loads((tmp_path / "out" / "inspection.json").read_bytes())
    assert written["summary"]["final"]["backdoored"] == 1
    page = (tmp_path / "out" / "inspection.md").read_text()
    assert "| final | digits | wrn-10-1 | 2 | none |" in page
    assert (tmp_path / "out" / "inspection.png").stat().st_size > 0
    assert "ASR" in capsys.readouterr().out


def test_splits_share_no_seed_and_backdoors_differ_by_seed() -> None:
    cells = [cell for split in inspection_calibration.CELLS.values() for cell in split]
    assert len({cell.seed for cell in cells}) == len(cells)
    drawn: list[Backdoor] = [backdoor_of(Cell("digits", "wrn-10-1", "patch", n), 0) for n in (1, 2)]
    assert drawn[0] != drawn[1]
    cases = [Case("final", cells[0], backdoor) for backdoor in (None, *drawn)]
    assert len({case.key for case in cases}) == 3


def test_a_threshold_lets_one_clean_model_of_twenty_pass() -> None:
    assert threshold_for([float(n) for n in range(20)]) == 18
    assert threshold_for([1.0, 3.0, 2.0]) == 3
    assert area_under_curve([0, 1], [1, 2]) == pytest.approx(3.5 / 4)


def test_what_the_verdict_tells_is_what_was_measured() -> None:
    content = json.loads(RESULTS.read_bytes())
    assert content["constants"] == constants()
    for name, entries in content["models"].items():
        assert content["summary"][name] == summary(entries)
    final = content["summary"]["final"]
    assert final["threshold"] == SUSPICIOUS_ANOMALY
    assert (final["detected"]["count"], final["detected"]["total"]) == FOUND_IN_TRIAL
    assert (final["false_alarms"]["count"], final["false_alarms"]["total"]) == ACCUSED_IN_TRIAL
    assert min(final["clean"], final["backdoored"]) >= 20
