"""Victims sanitized and then trained further: does the backdoor come back?

    python -m benchmarks.durability --attacks badnets clean

Every cell is a job with `durability: true`, on a victim of `benchmarks/victims` with its own
trigger. The clean twin goes through the same with the triggers of all victims, and, as `as_it_is`,
without being sanitized at all (`clp` with a bound that no channel exceeds): what retuning does to a
model that never had a backdoor. Figures of finished runs stand in `docs/results/durability.json`;
one that is there is not repeated. `benchmarks.grid` says how they run: several at once, a thread
each.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.grid import (
    IMAGES,
    TWIN,
    Cell,
    Grid,
    Mean,
    add_options,
    command_of,
    missing_note,
    origin,
)

DEFAULT = "argd_default"
AS_IT_IS = "as_it_is"
METHODS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {"name": "argd"},
    "argd": {"name": "argd", "preset": "paper"},
    "finetune": {"name": "finetune", "preset": "paper"},
    AS_IT_IS: {"name": "clp", "deviations": 100},
}
"""As requests have them."""
FIGURES = ("delivered", "clean", "poisoned", "control_delivered", "control")
"""Of a trigger, as the report has them."""


def cells(victims: Sequence[str], options: argparse.Namespace) -> Iterator[Cell]:
    """All runs, those of the first seed first."""
    for seed in range(options.seeds):
        for victim in victims:
            for method in options.methods:
                if method != AS_IT_IS or victim == TWIN:
                    yield Cell(
                        victim, method, METHODS[method], IMAGES, seed, curve=False, durability=True
                    )


def rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds: trigger by trigger the victim first, then the clean twin.

    Triggers of victims that were not run are left out.
    """
    of_victims = [result for result in results if result["victim"] != TWIN]
    triggers = {next(iter(result["durability"]["probes"])): None for result in of_victims}
    found: dict[tuple[str, bool, str], list[Mapping[str, Any]]] = {}
    for trigger in triggers:
        for result in sorted(results, key=lambda each: each["victim"] == TWIN):
            if trigger in result["durability"]["probes"]:
                which = (trigger, result["victim"] == TWIN, result["variant"])
                found.setdefault(which, []).append(result)
    return [
        {
            "trigger": trigger,
            "model": "clean twin" if twin else "victim",
            "variant": variant,
            "before": Mean.of([result["before"]["asr"][trigger] for result in runs]),
            "acc": Mean.of([result["durability"]["acc"] for result in runs]),
            "retuned_acc": Mean.of([result["durability"]["retuned_acc"] for result in runs]),
            **{
                name: Mean.of([result["durability"]["probes"][trigger][name] for result in runs])
                for name in FIGURES
            },
            "seeds": len(runs),
        }
        for (trigger, twin, variant), runs in found.items()
    ]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a block of lines for each victim's trigger."""
    lines = [
        "| model, method | ACC delivered | ACC retuned | ASR before | ASR delivered "
        "| retuned, clean | retuned, poisoned | control delivered | control, poisoned | n |",
        "|---" * 10 + "|",
    ]
    trigger = None
    for row in rows(results):
        if row["trigger"] != trigger:
            trigger = row["trigger"]
            lines.append(f"| **trigger of {trigger}** |" + " |" * 9)
        lines.append(
            f"| {row['model']}, {row['variant']} | {row['acc']} | {row['retuned_acc']} "
            f"| {row['before']} | "
            + " | ".join(str(row[name]) for name in FIGURES)
            + f" | {row['seeds']} |"
        )
    return "\n".join(lines) + "\n"


def page(
    results: Sequence[Mapping[str, Any]], command: str, missing: int, architecture: str
) -> str:
    """The whole document."""
    known = results[0]["durability"]
    return (
        "# Does the backdoor come back?\n\n"
        f"    {command}\n\n"
        f"{architecture} on CIFAR-10, sanitized with {IMAGES:,} clean images, then copies retuned "
        f"on the same images for\n{known['epochs']} epochs at a learning rate of "
        f"{known['learning_rate']:g} (Min et al., NeurIPS 2024, arXiv 2410.09838). Per cent, on "
        f"{known['measured_images']:,} test images,\nbut for ASR before, which is on all. "
        "Clean: on the clean images as they are. Poisoned: 1% of them carry the victim's trigger "
        "and\nits target's label. Control: they carry the trigger and another label. Clean twin: "
        "a model that never had the backdoor,\nthrough the same; `as_it_is`: not sanitized.\n\n"
        f"{origin(results)}\n{missing_note(missing)}\n" + table(results)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON and Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_options(parser, "var/durability")
    parser.set_defaults(seeds=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[DEFAULT, AS_IT_IS])
    options = parser.parse_args(arguments)
    grid = Grid(options, "durability")
    wanted = list(cells(grid.chosen, options))
    command = command_of("benchmarks.durability", arguments)
    grid.publish(
        wanted, lambda results, missing: page(results, command, missing, grid.architecture)
    )


if __name__ == "__main__":
    main()
