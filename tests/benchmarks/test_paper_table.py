"""The table of attacks by methods: its statistics, and that it goes on where it stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import paper_table
from benchmarks.paper_table import Cell, Mean, key, order_of, rows
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator

PROBE = {
    "kind": "patch",
    "name": "corner",
    "target_class": 0,
    "row": -3,
    "column": -3,
    "pixels": [[255, 0], [0, 255]],
}


def result(victim: str, seed: int, acc: float, asr: dict[str, float]) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "victim": victim,
        "method": "finetune",
        "images": 2500,
        "seed": seed,
        "before": {"acc": 80.0, "asr": dict.fromkeys(asr, 100.0), "ra": dict.fromkeys(asr, 1.0)},
        "after": {"acc": acc, "asr": asr, "ra": asr},
        "der": asr,
        "training_seconds": 10.0 * (seed + 1),
        "seconds": 20.0,
        "curve": [],
        "device": "a processor",
        "precision": "float32",
        "versions": {"torch": "2"},
        "date": "2026-11-26",
    }


def test_interval_of_three_values_is_students() -> None:
    # Mean 2, standard deviation 1, and 4.303 is the 97.5% quantile with 2 degrees of freedom.
    mean = Mean.of([1.0, 2.0, 3.0])
    assert mean.value == 2
    assert mean.reach == pytest.approx(4.303 / 3**0.5)
    assert str(mean) == "2.00 ± 2.48"


def test_one_value_has_no_interval() -> None:
    assert str(Mean.of([3.14159])) == "3.14"


def test_figures_are_means_over_seeds_and_on_the_clean_twin_over_triggers() -> None:
    found = rows(
        [
            result("badnets", 0, 75.0, {"badnets": 4.0}),
            result("badnets", 1, 77.0, {"badnets": 6.0}),
            result("clean", 0, 79.0, {"badnets": 1.0, "blend": 3.0}),
        ],
        2500,
    )
    badnets, clean = found
    assert (badnets["acc"].value, badnets["asr"].value, badnets["seeds"]) == (76.0, 5.0, 2)
    assert badnets["seconds"] == 15.0
    assert (clean["asr"].value, clean["asr"].reach) == (2.0, None)


def test_clean_twin_is_the_last_of_the_table() -> None:
    assert sorted(["clean", "blend", "wanet"], key=order_of) == ["blend", "wanet", "clean"]


def test_key_changes_with_victim_and_seed() -> None:
    victims = {"badnets": {"sha256": "a", "probe": PROBE}}
    other = {"badnets": {"sha256": "b", "probe": PROBE}}
    cell = Cell("badnets", "nad", 500, 0)
    assert key(cell, victims) == key(cell, victims)
    assert key(cell, victims) != key(cell, other)
    assert key(cell, victims) != key(Cell("badnets", "nad", 500, 1), victims)


def test_without_victims_it_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"`python -m benchmarks\.victims` makes it"):
        paper_table.main(["--victims", str(tmp_path)])


def test_an_unknown_victim_is_named_beside_those_there_are(tmp_path: Path) -> None:
    make_victims(tmp_path)
    with pytest.raises(SystemExit, match=r"No victim badnet; there are badnets\."):
        paper_table.main(["--victims", str(tmp_path), "--attacks", "badnet"])


def test_runs_that_are_kept_are_not_run_again(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_victims(tmp_path)
    command = ["--victims", str(tmp_path), "--results", str(tmp_path / "results")]
    command += ["--work", str(tmp_path / "work"), "--shared", str(shared)]
    command += ["--methods", "finetune", "--images", "500", "--seeds", "1"]

    paper_table.main([*command, "--cached"])
    assert "Nothing has been run yet." in capsys.readouterr().out

    # A run takes a minute; what one left is enough to see that it is not repeated.
    victims = json.loads((tmp_path / "manifest.json").read_text())["victims"]
    cell = Cell("badnets", "finetune", 500, 0)
    kept = {key(cell, victims): result("badnets", 0, 75.0, {"corner": 4.0}) | {"images": 500}}
    stale: dict[str, Any] = {json.dumps({"victim": "of another file"}): {}}
    (tmp_path / "results").mkdir(exist_ok=True)
    path = tmp_path / "results" / "paper_table.json"
    path.write_text(json.dumps({"runs": {**kept, **stale}}))

    paper_table.main(command)
    printed = capsys.readouterr().out
    assert "| | finetune | 75.00 | 4.00 | 4.00 | 4.00 | 1 | 10 |" in printed
    assert "still missing" not in printed
    assert not (tmp_path / "work").exists()
    assert json.loads(path.read_text())["runs"] == kept
    assert (tmp_path / "results" / "paper_table.md").read_text() == printed


def make_victims(folder: Path) -> None:
    """A cache with one victim in it, untrained."""
    network = build_network("wrn-10-1", 10, 3, make_generator(0))
    path = folder / "badnets.safetensors"
    save_file({name: torch.clone(value) for name, value in network.state_dict().items()}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"file": path.name, "sha256": sha256, "probe": PROBE, "twin": None}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "victims": {"badnets": entry}}))
