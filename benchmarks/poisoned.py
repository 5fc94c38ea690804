r"""Victims sanitized with images of which some carry the trigger: does the backdoor survive?

    python -m benchmarks.poisoned --attacks badnets sig

Every cell is a job that names no method, on a victim of `benchmarks/victims`, with a draw of
CIFAR-10's training images of which 5 of 100 got the victim's own trigger and its target's label.
Beside it stands the same job without these. Figures of finished runs stand in
`docs/results/poisoned.json`; one that is there is not repeated. `benchmarks.grid` says how they
run: several at once, a thread each.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.grid import (
    IMAGES,
    TWIN,
    Cell,
    Grid,
    add_options,
    command_of,
    missing_note,
    origin,
    table,
)

POISONED = 0.05
DEFAULT: Mapping[str, Any] = {"name": "argd"}


def cells(victims: Sequence[str], seeds: int) -> Iterator[Cell]:
    """All runs, those of the first seed first."""
    for seed in range(seeds):
        for victim in victims:
            if victim != TWIN:
                yield Cell(victim, "5% with the trigger", DEFAULT, IMAGES, seed, poisoned=POISONED)
                yield Cell(victim, "none", DEFAULT, IMAGES, seed)


def page(
    results: Sequence[Mapping[str, Any]], command: str, missing: int, architecture: str
) -> str:
    """The whole document."""
    lines = [
        f"- {result['victim']}, seed {result['seed']}: {result['left_out']} images left out of "
        f"{result['images']:,}, of which {round(POISONED * result['images'])} had the trigger"
        for result in results
        if result["variant"] != "none"
    ]
    return (
        "# Clean images of which some carry the trigger\n\n"
        f"    {command}\n\n"
        f"{architecture} on CIFAR-10, {IMAGES:,} images of the training file, measured on its "
        "10,000 test images; jobs that name no method. Of images\nof one class no more can carry "
        "the trigger than there are: sig, refool and cl have theirs on the target's own class.\n\n"
        f"{origin(results)}\n{missing_note(missing)}\n"
        + table(results)
        + "\n"
        + "\n".join(lines)
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON and Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_options(parser, "var/poisoned")
    options = parser.parse_args(arguments)
    grid = Grid(options, "poisoned")
    wanted = list(cells(grid.chosen, options.seeds))
    command = command_of("benchmarks.poisoned", arguments)
    grid.publish(
        wanted, lambda results, missing: page(results, command, missing, grid.architecture)
    )


if __name__ == "__main__":
    main()
