"""What a job that names no method is meant to reach, beside what it reached.

The goals stand in the issue of the default: with 2,500 clean images at most 1.5 points of accuracy
(1 on a model without a backdoor), an ASR at most 2 points over what a clean model makes of the same
trigger, and 90% of a clean model's robust accuracy; with 500 images 4 points and 10.
"""

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.grid import TWIN, Mean, order_of


@dataclass(frozen=True)
class Goals:
    """Limits, in points; shares in per cent.

    Attributes:
        acc_lost: Of the victim's own accuracy, at most.
        twin_acc_lost: Of a clean model's.
        asr_over: The clean twin's rate, as it is, at most.
        ra_share: Of the clean twin's under the same trigger, as it is, at least; None: any.
    """

    acc_lost: float
    twin_acc_lost: float
    asr_over: float
    ra_share: float | None


GOALS: Mapping[int, Goals] = {
    2500: Goals(1.5, 1, 2, 90),
    500: Goals(4, 4, 10, None),
}
"""By clean images."""


def goals_table(results: Sequence[Mapping[str, Any]], variant: str, images: int) -> str:
    """Markdown: a line per victim, what is missed in bold; empty without such runs, or runs
    of the clean twin.

    Args:
        results: Of any methods and any numbers of images.
        variant: The method that is held against the goals.
        images: Clean ones, for which there are goals.
    """
    goals = GOALS[images]
    of = [r for r in results if r["variant"] == variant and r["images"] == images]
    twins = [result for result in results if result["victim"] == TWIN]
    if not of or not twins:
        return ""
    natural = twins[0]["before"]
    lines = [
        "| victim | ACC lost | ASR over a clean model's | RA, share of a clean model's | n |",
        "|---" * 5 + "|",
    ]
    for victim in sorted({result["victim"] for result in of}, key=order_of):
        runs = [result for result in of if result["victim"] == victim]
        lost = Mean.of([run["before"]["acc"] - run["after"]["acc"] for run in runs])
        limit = goals.twin_acc_lost if victim == TWIN else goals.acc_lost
        cells = [_marked(f"{lost}", lost.value > limit)]
        over = _mean_of("asr", runs, natural, operator.sub)
        share = _mean_of("ra", runs, natural, lambda ra, of_clean: 100 * ra / of_clean)
        cells.append(_marked(f"{over}", over.value > goals.asr_over))
        least = 0 if goals.ra_share is None else goals.ra_share
        cells.append(_marked(f"{share}%", share.value < least))
        lines.append(f"| {victim} | {' | '.join(cells)} | {len(runs)} |")
    allowed = [f"{goals.acc_lost:g} ({goals.twin_acc_lost:g} on {TWIN})", f"{goals.asr_over:g}"]
    allowed.append("" if goals.ra_share is None else f"at least {goals.ra_share:g}%")
    lines.append(f"| *the goal* | {' | '.join(allowed)} | |")
    return "\n".join(lines) + "\n"


def _mean_of(
    figure: str,
    runs: Sequence[Mapping[str, Any]],
    natural: Mapping[str, Any],
    compared: Callable[[float, float], float],
) -> Mean:
    """Over seeds, of the mean over the triggers that were measured: of a victim one."""
    return Mean.of(
        [
            statistics.mean(
                compared(value, natural[figure][name])
                for name, value in run["after"][figure].items()
            )
            for run in runs
        ]
    )


def _marked(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text
