"""Which of several methods did best, by clean images and by what a search found: `auto` asks.

Nothing here has seen a trigger. Two things count: how many held-out clean images a model gets
right, and how far the changes that were found in the suspect model still mislead it. The second is
the nearest thing to an ASR that clean images give: what leads images to a class in the suspect
model is, if anything is, close to its trigger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sanitizer.evaluation.metrics import wilson
from sanitizer.report.model import ClassInspection, Proportion, Try, TryOutcome

MARGIN = 1.0
"""Standard errors by which a later method has to be better than an earlier one. Held-out images are
few; without it chance would choose."""


@dataclass(frozen=True)
class Tried:
    """A method that is through, in plain values, for a checkpoint.

    Attributes:
        method: Its name.
        left_out: Why it was not tried; empty: it was.
        right: Of each held-out image, whether it is classified right.
        residual: Share of held-out images of other classes that the worst of the found changes
            leads to its class, less the share that goes there without it; at least 0.
        images: That `residual` was measured on.
        target: The class of that change; -1: there is no change.
        seconds: Of its stages.
    """

    method: str
    left_out: str = ""
    right: list[bool] = field(default_factory=list)
    residual: float = 0.0
    images: int = 0
    target: int = -1
    seconds: float = 0.0

    @property
    def accuracy(self) -> Proportion:
        """Of the held-out images."""
        return wilson(sum(self.right), len(self.right))

    @property
    def score(self) -> float:
        """Accuracy less residual, in [-1, 1]: an image saved weighs as much as one misled."""
        return self.accuracy.value - self.residual


def worst_of(carried: Sequence[ClassInspection]) -> tuple[float, int, int]:
    """Residual, its class and images, of what the found changes do to a model; see `Tried`."""
    worst = (0.0, -1, 0)
    for each in carried:
        excess = each.estimated_asr - each.natural_rate.value
        if excess > worst[0] or worst[1] < 0:
            worst = (max(0.0, excess), each.target_class, each.natural_rate.total)
    return worst


def best_of(tried: Sequence[Tried]) -> Tried:
    """The method whose model is kept.

    The first, unless a later one is better by more than chance makes of so few images.

    Raises:
        ValueError: None was tried.
    """
    through = [each for each in tried if not each.left_out]
    if not through:
        raise ValueError("at least one method that was tried is expected")
    best = through[0]
    for each in through[1:]:
        if each.score - best.score > MARGIN * standard_error(each, best):
            best = each
    return best


def standard_error(one: Tried, other: Tried) -> float:
    """Of the difference of two scores; the accuracies are of the same images, which pairs them."""
    difference = np.array(one.right, dtype=np.float64) - np.array(other.right, dtype=np.float64)
    variance = float(difference.var()) / max(1, len(difference))
    for each in (one, other):
        variance += each.residual * (1 - each.residual) / max(1, each.images)
    return math.sqrt(variance)


def records_of(tried: Sequence[Tried]) -> list[Try]:
    """What the report says of each, in their order."""
    best = best_of(tried)
    return [_record(each, best, single=len(tried) == 1) for each in tried]


def _record(tried: Tried, best: Tried, *, single: bool) -> Try:
    if tried.left_out:
        return Try(method=tried.method, outcome=TryOutcome.LEFT_OUT, reason=tried.left_out)
    kept = tried is best
    return Try(
        method=tried.method,
        outcome=TryOutcome.KEPT if kept else TryOutcome.DROPPED,
        reason=_kept(tried, single) if kept else _dropped(tried, best),
        accuracy=tried.accuracy,
        residual=tried.residual,
        target_class=None if tried.target < 0 else tried.target,
        seconds=round(tried.seconds, 3),
    )


def _kept(tried: Tried, single: bool) -> str:
    told = f"{tried.accuracy.value:.1%} of held-out images right, {tried.residual:.1%} misled"
    return f"The only one: {told}." if single else f"The best of those tried: {told}."


def _dropped(tried: Tried, best: Tried) -> str:
    accuracy = 100 * (tried.accuracy.value - best.accuracy.value)
    residual = 100 * (tried.residual - best.residual)
    error = 100 * standard_error(tried, best)
    told = (
        f"Beside {best.method}: accuracy {accuracy:+.1f} points, misled {residual:+.1f} points, "
        f"each difference known to about {error:.1f}."
    )
    better = accuracy - residual
    return told if better <= 0 else f"{told} Too little to pass what came first."
