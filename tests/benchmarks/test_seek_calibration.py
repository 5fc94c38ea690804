import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import inspection_calibration, seek_calibration
from benchmarks.inspection_calibration import DATA, Cell, Data
from benchmarks.seek_calibration import KINDS, data_of, line_of_telling, main, summary, telling
from sanitizer.report.telling import (
    FALSELY_TELLING_IN_TRIAL,
    FALSELY_TELLING_OF_LARGER,
    TELLING_IN_TRIAL,
    TELLING_OF_LARGER,
    TELLING_RATES,
)

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "seek.json"
ROWS: list[dict[str, Any]] = [
    {"attack": None, "patch": [0.2, 1]},
    {"attack": None, "patch": [0.4, 3]},
    {"attack": "patch", "patch": [0.9, 7], "target": 7},
    {"attack": "patch", "patch": [0.5, 2], "target": 7},
    {"attack": "blend", "patch": [0.3, 7], "target": 7},
]


def test_models_are_sought_once_and_make_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DATA, "digits", Data(8, 1, 10, trained=200, epochs=1, batch_size=50))
    cells = {"development": (Cell("digits", "wrn-10-1", "patch", 1),)}
    monkeypatch.setattr(seek_calibration, "CELLS", cells)
    monkeypatch.setattr(inspection_calibration, "MIN_ASR", 0)
    monkeypatch.setattr(inspection_calibration, "MAX_DROP", 1)
    # It sets up the whole process, and so the tests after this one.
    monkeypatch.setattr(seek_calibration, "prepare_process", lambda: None)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    main([*places, "--splits", "development"])
    first = (tmp_path / "out" / "seek.json").read_bytes()
    main([*places, "--splits", "development"])

    assert (tmp_path / "out" / "seek.json").read_bytes() == first
    clean, bad = json.loads(first)["development"]
    assert (clean["attack"], bad["attack"]) == (None, "patch")
    assert clean["asr"] is None
    content = json.loads(first)
    assert list(content) == ["made", "development"]
    assert "torch" in content["made"]["development"]
    for row in (clean, bad):
        for kind in KINDS:
            rate, target, others = row[kind]
            assert 0 <= others <= 1
            assert 0 <= rate <= 1
            assert target in range(10)
    page = (tmp_path / "out" / "seek.md").read_text()
    assert "## Development" in page
    assert f"| {bad['name']} to {bad['target']} |" in page
    assert "development digits wrn-10-1 1 clean" in capsys.readouterr().out


def test_the_summary_counts_what_no_clean_model_reaches() -> None:
    # Of six pairs of a clean and a backdoored rate five are in the right order.
    area, higher = f"{5 / 6:.3f}", "2 of 3, 1"
    expected = f"| patch | {area} | 30, 40 | {higher} | 0 of 1, 0 | 2 of 2, 1 |"
    assert summary(ROWS, "patch") == expected


def test_models_with_a_rate_that_no_clean_one_reached_are_counted() -> None:
    def row(attack: str | None, rate: float, target: int = 7) -> dict[str, Any]:
        rates = {kind: [0.1, 0] for kind in KINDS} | {"warp": [rate, 7]}
        return {"attack": attack, "target": target, **rates}

    high, low = TELLING_RATES["warp"], TELLING_RATES["warp"] - 0.01
    rows = [row(None, low), row(None, high), row("warp", high), row("blend", 1.0, 3)]
    rows.append(row("warp", low))

    assert telling(rows, DATA["digits"]) == {"found": (2, 3), "right": (1, 2), "accused": (1, 2)}
    assert line_of_telling("trial", rows) == "| trial | 2 of 3 | 1 of 2 | 1 of 2 | 1 of 2 |"


def test_of_larger_images_what_leads_to_other_classes_counts_too() -> None:
    def row(attack: str | None, rate: float, others: float | None) -> dict[str, Any]:
        return {"attack": attack, "target": 7, "warp": [rate, 7, others]}

    # Clean models: one that is led to all classes alike, and one where nobody knows.
    rows = [row("warp", 0.55, 0.2), row(None, 0.55, 0.5), row(None, 0.55, None)]
    assert telling(rows, DATA["signs"]) == {"found": (1, 1), "right": (1, 1), "accused": (0, 2)}
    assert telling(rows, DATA["digits"])["found"] == (0, 1)


def test_what_the_verdict_tells_is_what_was_measured() -> None:
    splits = json.loads(RESULTS.read_bytes())
    counts = telling(splits["trial"], data_of("trial"))
    assert counts["found"] == TELLING_IN_TRIAL
    assert counts["accused"] == FALSELY_TELLING_IN_TRIAL
    larger = telling(splits["larger trial"], data_of("larger trial"))
    assert larger["found"] == TELLING_OF_LARGER
    assert larger["accused"] == FALSELY_TELLING_OF_LARGER
