r"""Attacks by methods by seeds: what each defense leaves of accuracy and backdoor.

    python -m benchmarks.paper_table

Every cell is a job like any other: `python -m sanitizer run` on a victim of `benchmarks/victims`,
with clean images drawn from CIFAR-10's training file, measured on its test file with the victim's
own trigger. Nothing is chosen by these figures: methods run with their presets, and take the last
epoch. The clean twin goes through every method too, measured with the trigger of every victim.

Figures of finished runs stand in `docs/results/paper_table.json`; a run that is there, of the same
victim (by hash) with the same settings, is not repeated, and a run that was killed goes on from its
checkpoint. The table is renewed after every run.

Of PreAct-ResNet-18, once `benchmarks.victims` has trained such:

    python -m benchmarks.paper_table --victims var/victims-preact --results var/results-preact \
        --work var/paper_table-preact --images 2500 --device cuda --at-once 1

`benchmarks.grid` says how they run: several at once, a thread each.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.goals import GOALS, goals_table
from benchmarks.grid import IMAGES, Cell, Grid, add_options, command_of, missing_note, origin, table
from sanitizer.catalog import METHODS

DEFAULT = "argd_default"
"""What a job gets that names no method; the others have their preset `paper`."""

AUTO = "auto"
"""Has settings of its own, nobody's paper's."""

FRACTIONS_OF = ("finetune", "nad", "argd", DEFAULT)
"""Methods that are also run with fewer clean images."""
FEWER = (1000, 500)
"""2% and 1% of CIFAR-10's training images; the table's 2,500 are 5%."""


def cells(victims: Sequence[str], options: argparse.Namespace) -> Iterator[Cell]:
    """All runs, those of the main table and of the first seed first."""
    for images in (IMAGES, *FEWER):
        for seed in range(options.seeds):
            for victim in victims:
                for method in options.methods:
                    if images in options.images and (images == IMAGES or method in FRACTIONS_OF):
                        yield Cell(victim, method, request_of(method), images, seed)


def request_of(method: str) -> Mapping[str, Any]:
    """What a request has as its method, for what the table calls one."""
    if method == DEFAULT:
        return {"name": "argd"}
    if method == AUTO:
        return {"name": AUTO}
    return {"name": method, "preset": "paper"}


def page(
    results: Sequence[Mapping[str, Any]], command: str, missing: int, architecture: str
) -> str:
    """The whole document."""
    sections = [
        f"## {images:,} clean images ({images / 500:g}%)\n\n"
        + table([result for result in results if result["images"] == images])
        + _goals(results, images)
        for images in sorted({result["images"] for result in results}, reverse=True)
    ]
    return (
        "# Attacks by methods\n\n"
        f"    {command}\n\n"
        f"{architecture} on CIFAR-10, measured on its 10,000 test images. Means over seeds with "
        "95% intervals (Student's t);\nthe seed decides the draw of clean images and the training. "
        "Each method runs with its preset `paper`,\n`argd_default` is a job that names no method, "
        "and nothing was chosen by these figures. ASR, RA\nand DER are those of the victim's own "
        "trigger; on the clean model, means over all "
        "triggers: its ASR is what a model without a backdoor makes of them.\nSeconds: of the "
        "method alone, one thread, beside another run.\n\n"
        f"{origin(results)}\n{missing_note(missing)}\n" + "\n".join(sections)
    )


def _goals(results: Sequence[Mapping[str, Any]], images: int) -> str:
    reached = goals_table(results, DEFAULT, images) if images in GOALS else ""
    if not reached:
        return ""
    return f"\n`{DEFAULT}` against its goals; what is missed is bold:\n\n{reached}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON and Markdown."""
    names = [*(entry.name for entry in METHODS), DEFAULT]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_options(parser, "var/paper_table")
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--images", nargs="+", type=int, default=[IMAGES, *FEWER])
    options = parser.parse_args(arguments)
    grid = Grid(options, "paper_table")
    wanted = list(cells(grid.chosen, options))
    command = command_of("benchmarks.paper_table", arguments)
    grid.publish(
        wanted, lambda results, missing: page(results, command, missing, grid.architecture)
    )


if __name__ == "__main__":
    main()
