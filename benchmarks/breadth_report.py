"""What `benchmarks.breadth` came to: a page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.grid import origin


def line_of(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    before, after, natural = row["before"], row["after"], row["twin_before"]
    return (
        f"| {row['data']} | {row['architecture']} | {row['attack']} | {row['variant']} "
        f"| {before['acc']:.1f} to {after['acc']:.1f} | {before['asr']:.1f} to {after['asr']:.1f} "
        f"| {natural['asr']:.1f} | {before['ra']:.1f} to {after['ra']:.1f} | {natural['ra']:.1f} "
        f"| {natural['acc']:.1f} to {row['twin']['acc']:.1f} | {row['seconds']:.0f} |"
    )


HEAD = (
    "| data | network | trigger | method | ACC % | ASR % | a clean model's | RA % "
    "| a clean model's | ACC % of the clean model | s |\n" + "|---" * 11 + "|"
)
GAINED, GONE = 2.0, 90.0
"""The goals of the table's victims: points of ASR over a clean model's, per cent of its RA."""


LEARNED = 25.0, 50.0
"""Accuracy and ASR, per cent, that a backdoored model has at least which has learned anything."""


def has_learned(row: Mapping[str, Any]) -> bool:
    """Whether there is a task to keep and a backdoor to remove."""
    accuracy, rate = LEARNED
    return bool(row["before"]["acc"] >= accuracy and row["before"]["asr"] >= rate)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each method does on average."""
    lines = [
        "| method | n | ACC lost | by the clean model | ASR over a clean model's: mean, most "
        "| RA, share of a clean model's: mean, least | gone |\n" + "|---" * 7 + "|"
    ]
    rows = [row for row in rows if has_learned(row)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        lost = [row["before"]["acc"] - row["after"]["acc"] for row in mine]
        twins = [row["twin_before"]["acc"] - row["twin"]["acc"] for row in mine]
        over = [row["after"]["asr"] - row["twin_before"]["asr"] for row in mine]
        kept = [100 * row["after"]["ra"] / row["twin_before"]["ra"] for row in mine]
        gone = sum(o <= GAINED and k >= GONE for o, k in zip(over, kept, strict=True))
        lines.append(
            f"| {variant} | {len(mine)} | {statistics.fmean(lost):.2f} "
            f"| {statistics.fmean(twins):.2f} | {statistics.fmean(over):.2f}, {max(over):.1f} "
            f"| {statistics.fmean(kept):.0f}%, {min(kept):.0f}% | {gone} |"
        )
    return "\n".join(lines)


def page(content: Mapping[str, Any], data: Sequence[str], pairs: Mapping[str, int]) -> str:
    """The whole document.

    Args:
        content: Rows of each split.
        data: A row about each data set: images, classes, how many images are for what.
        pairs: How many pairs of models each split has when all are there.
    """
    parts = [
        "# Other data, other networks, other triggers\n",
        *(f"    python -m benchmarks.breadth --split {split}" for split in content["splits"]),
        "\nEach row is two jobs: one on a backdoored model, one on its clean twin, with the same "
        "clean images, measured on others. *Gone*\ncounts the backdoors that leave an ASR at most "
        f"{GAINED:g} points over the clean twin's and {GONE:g}% of its robust accuracy.\n",
        "| data | images | classes | of the model | of the job | measured |\n" + "|---" * 6 + "|",
        *data,
        "",
        f"{origin([row for rows in content['splits'].values() for row in rows])} One thread a job, "
        "one seed a row; paper runs with the published augmentation, flips and all.",
    ]
    for split, rows in content["splits"].items():
        title = "Final" if split == "final" else "Development, which the default was mended on"
        parts += [f"\n## {title}\n", summary(rows), ""]
        if idle := {(row["seed"], row["attack"]) for row in rows if not has_learned(row)}:
            parts += [
                f"{len(idle)} backdoored models had learned less than {LEARNED[0]:g}% of the task "
                f"or {LEARNED[1]:g}% of the backdoor; their rows stand below, and not in the "
                "means.\n"
            ]
        if missing := pairs[split] - len({(row["seed"], row["attack"]) for row in rows}):
            parts += [f"**{missing} pairs are still missing**; the command goes on with them.\n"]
        parts += [HEAD, *map(line_of, rows)]
    return "\n".join(parts) + "\n"
