"""The table of attacks by methods: its statistics, and that it goes on where it stopped."""

import argparse
import hashlib
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from benchmarks import paper_table
from benchmarks.goals import goals_table
from benchmarks.grid import (
    T_975,
    Cell,
    Grid,
    Mean,
    add_options,
    command_of,
    order_of,
    renewed,
    rows,
)
from sanitizer.catalog import METHODS
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import METHOD_ADAPTER

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
        "variant": "finetune",
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


def of_default(victim: str, seed: int, acc: float, asr: dict[str, float]) -> dict[str, Any]:
    return {**result(victim, seed, acc, asr), "variant": paper_table.DEFAULT}


def test_goals_are_held_against_what_a_clean_model_makes_of_the_trigger() -> None:
    twin = of_default("clean", 0, 79.5, {"a": 3.0, "b": 5.0})
    twin["before"] = {"acc": 80.0, "asr": {"a": 2.0, "b": 4.0}, "ra": {"a": 70.0, "b": 60.0}}
    good = of_default("a", 0, 79.0, {"a": 3.5})
    good["after"]["ra"] = {"a": 63.0}
    bad = [of_default("b", seed, 78.0, {"b": 6.5 + seed}) for seed in range(2)]
    for each in bad:
        each["after"]["ra"] = {"b": 48.0}
    lines = goals_table([good, *bad, twin], paper_table.DEFAULT, 2500).splitlines()
    assert lines[2] == "| a | 1.00 | 1.50 | 90.00% | 1 |"
    assert lines[3] == "| b | **2.00 ± 0.00** | **3.00 ± 6.35** | **80.00 ± 0.00%** | 2 |"
    assert lines[4].startswith("| clean | 0.50 | 1.00 |")
    assert lines[5] == "| *the goal* | 1.5 (1 on clean) | 2 | at least 90% | |"
    assert goals_table([good], paper_table.DEFAULT, 2500) == ""  # nothing to hold it against
    assert goals_table([twin], "finetune", 2500) == ""


def test_interval_of_three_values_is_students() -> None:
    # Mean 2, standard deviation 1, and 4.303 is the 97.5% quantile with 2 degrees of freedom.
    mean = Mean.of([1.0, 2.0, 3.0])
    assert mean.value == 2
    assert mean.reach == pytest.approx(4.303 / 3**0.5)
    assert str(mean) == "2.00 ± 2.48"


def test_quantiles_are_those_of_students_distribution() -> None:
    expected = stats.t.ppf(0.975, np.arange(1, len(T_975) + 1))
    np.testing.assert_allclose(T_975, expected, atol=5e-4)


@pytest.mark.parametrize(("values", "quantile"), [(8, 2.365), (31, 2.042), (32, 1.96)])
def test_interval_of_many_values_is_students_as_far_as_the_table_goes(
    values: int, quantile: float
) -> None:
    numbers = [float(number) for number in range(values)]
    error = statistics.stdev(numbers) / values**0.5
    assert Mean.of(numbers).reach == pytest.approx(quantile * error)


def test_one_value_has_no_interval() -> None:
    assert str(Mean.of([3.14159])) == "3.14"


def test_figures_are_means_over_seeds_and_on_the_clean_twin_over_triggers() -> None:
    found = rows(
        [
            result("badnets", 0, 75.0, {"badnets": 4.0}),
            result("badnets", 1, 77.0, {"badnets": 6.0}),
            result("clean", 0, 79.0, {"badnets": 1.0, "blend": 3.0}),
        ]
    )
    badnets, clean = found
    assert (badnets["acc"].value, badnets["asr"].value, badnets["seeds"]) == (76.0, 5.0, 2)
    assert badnets["seconds"] == 15.0
    assert (clean["asr"].value, clean["asr"].reach) == (2.0, None)


def test_clean_twin_is_the_last_of_the_table() -> None:
    assert sorted(["clean", "blend", "wanet"], key=order_of) == ["blend", "wanet", "clean"]


def test_without_victims_it_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"`python -m benchmarks\.victims` makes it"):
        paper_table.main(["--victims", str(tmp_path)])


def test_an_unknown_victim_is_named_beside_those_there_are(tmp_path: Path) -> None:
    make_victims(tmp_path)
    with pytest.raises(SystemExit, match=r"No victim badnet; there are badnets\."):
        paper_table.main(["--victims", str(tmp_path), "--attacks", "badnet"])


def test_nothing_is_run_where_only_the_cache_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_victims(tmp_path)
    paper_table.main([*command(tmp_path), "--cached"])
    assert capsys.readouterr().out == "Nothing has been run yet.\n"
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_run_is_kept_for_the_next_time(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_victims(tmp_path)
    wanted = [*command(tmp_path), "--shared", str(shared), "--methods", "finetune"]
    paper_table.main(wanted)
    first = capsys.readouterr().out
    kept = json.loads((tmp_path / "results" / "paper_table.json").read_text())["runs"]
    assert [run["seed"] for run in kept.values()] == [0]
    shutil.rmtree(tmp_path / "work")

    paper_table.main(wanted)

    assert capsys.readouterr().out == first
    assert not (tmp_path / "work").exists()
    assert (tmp_path / "results" / "paper_table.md").read_text() == first


def test_a_victim_that_was_trained_anew_and_another_seed_find_nothing_kept(tmp_path: Path) -> None:
    cell = Cell("badnets", "nad", {"name": "nad"}, 500, 0)
    make_victims(tmp_path)
    grid = make_grid(tmp_path)
    other_seed = replace(cell, seed=1)
    runs = {grid._key(cell): result("badnets", 0, 75.0, {"corner": 4.0})}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.json").write_text(json.dumps({"runs": runs}))

    assert [run["seed"] for run in make_grid(tmp_path).results([cell, other_seed])] == [0]
    make_victims(tmp_path, seed=1)
    assert make_grid(tmp_path).results([cell, other_seed]) == []


def make_grid(folder: Path) -> Grid:
    parser = argparse.ArgumentParser()
    add_options(parser, str(folder / "work"))
    return Grid(parser.parse_args(command(folder)[:-4]), "table")


def command(folder: Path) -> list[str]:
    """Arguments for one small run."""
    return ["--victims", str(folder), "--results", str(folder / "results")] + [
        "--work",
        str(folder / "work"),
        "--images",
        "500",
        "--seeds",
        "1",
    ]


def make_victims(folder: Path, seed: int = 0) -> None:
    """A cache with one victim in it, untrained."""
    network = build_network("wrn-10-1", 10, 3, make_generator(seed))
    path = folder / "badnets.safetensors"
    save_file({name: torch.clone(value) for name, value in network.state_dict().items()}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"file": path.name, "sha256": sha256, "probe": PROBE, "twin": None}
    entry["recipe"] = {"architecture": "wrn-10-1"}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "victims": {"badnets": entry}}))


def test_every_method_of_the_table_is_a_request_that_is_accepted() -> None:
    names = [*(entry.name for entry in METHODS), paper_table.DEFAULT]
    configs = [METHOD_ADAPTER.validate_python(paper_table.request_of(name)) for name in names]
    presets = {name: config.preset for name, config in zip(names, configs, strict=True)}
    assert presets.pop(paper_table.DEFAULT) == presets.pop(paper_table.AUTO) == "default"
    assert set(presets.values()) == {"paper"}


def test_the_command_of_a_page_names_no_place_of_this_machine() -> None:
    given = ["--shared", "/a/b", "--seeds", "3", "--work=/c", "--results", "d", "--cached"]

    assert command_of("benchmarks.x", given) == "python -m benchmarks.x --seeds 3"


def test_runs_from_before_the_student_went_back_are_none_of_the_default() -> None:
    method = METHOD_ADAPTER.validate_python({"name": "argd"}).model_dump(mode="json")
    new = json.dumps({"method": method})
    old = json.dumps({"method": {k: v for k, v in method.items() if k != "suspect_share"}})

    assert json.loads(renewed(new))["method"] == method
    assert json.loads(renewed(old))["method"] == {**method, "suspect_share": 0}
    published = {"name": "argd", "preset": "paper"}
    as_now = METHOD_ADAPTER.validate_python(published).model_dump(mode="json")
    assert json.loads(renewed(json.dumps({"method": published})))["method"] == as_now


@pytest.mark.parametrize("name", ["argd", "auto"])
def test_runs_from_before_parts_of_batches_told_used_all_of_them(name: str) -> None:
    method = METHOD_ADAPTER.validate_python({"name": name}).model_dump(mode="json")
    older = json.loads(json.dumps(method))
    of_default = older if name == "argd" else older["argd"]
    for hardening in ("hardening", "student_hardening"):
        del of_default[hardening]["ascent_share"]

    again = json.loads(renewed(json.dumps({"method": older})))["method"]

    assert json.loads(renewed(json.dumps({"method": method})))["method"] == method
    found = again if name == "argd" else again["argd"]
    for hardening in ("hardening", "student_hardening"):
        assert found[hardening] == {**of_default[hardening], "ascent_share": 1.0}
