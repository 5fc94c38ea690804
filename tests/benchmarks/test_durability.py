"""The table of what comes back: victims beside the clean twin under the same trigger."""

from argparse import Namespace
from typing import Any

from benchmarks.durability import AS_IT_IS, DEFAULT, cells, page, rows, table
from benchmarks.grid import TWIN


def result(victim: str, variant: str, seed: int, **probes: float) -> dict[str, Any]:
    """What is kept of a run: of each trigger the rate after poisoned retuning."""
    return {
        "victim": victim,
        "variant": variant,
        "seed": seed,
        "before": {"acc": 80.0, "asr": dict.fromkeys(probes, 99.0)},
        "durability": {
            "epochs": 3,
            "learning_rate": 0.01,
            "measured_images": 2000,
            "acc": 78.0 + seed,
            "retuned_acc": 77.0,
            "probes": {
                name: {
                    "delivered": 2.0,
                    "clean": 3.0,
                    "poisoned": poisoned,
                    "control_delivered": 1.0,
                    "control": 5.0,
                    "poisoned_images": 25,
                }
                for name, poisoned in probes.items()
            },
        },
        "device": "a processor",
        "precision": "float32",
        "versions": {"torch": "2"},
        "date": "2026-11-26",
    }


RESULTS = [
    result(TWIN, AS_IT_IS, 0, badnets=4.0, blend=50.0),
    result("badnets", DEFAULT, 0, badnets=40.0),
    result("badnets", DEFAULT, 1, badnets=44.0),
]


def test_victim_stands_before_the_clean_twin_under_its_trigger() -> None:
    victim, twin = rows(RESULTS)
    assert (victim["model"], victim["variant"], victim["seeds"]) == ("victim", DEFAULT, 2)
    assert (victim["poisoned"].value, victim["acc"].value) == (42.0, 78.5)
    # Of the twin's triggers, that of the victim that was run.
    assert (twin["model"], twin["variant"], twin["poisoned"].value) == ("clean twin", AS_IT_IS, 4.0)


def test_table_has_a_block_for_each_trigger() -> None:
    lines = table(RESULTS).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| **trigger of badnets** |")
    assert "| 2.00 | 3.00 | 4.00 | 1.00 | 5.00 | 1 |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_page_says_what_is_missing() -> None:
    text = page(RESULTS, "python -m benchmarks.durability", 2, "wrn-16-1")
    assert "**2 runs are still missing**" in text
    assert "3 epochs at a learning rate of 0.01" in text.replace("\n", " ")


def test_only_the_twin_is_run_as_it_is() -> None:
    options = Namespace(seeds=1, methods=[DEFAULT, AS_IT_IS])
    wanted = list(cells(["badnets", TWIN], options))
    assert [(cell.victim, cell.variant) for cell in wanted] == [
        ("badnets", DEFAULT),
        (TWIN, DEFAULT),
        (TWIN, AS_IT_IS),
    ]
    assert all(cell.durability for cell in wanted)
