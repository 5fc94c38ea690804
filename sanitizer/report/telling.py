"""How much a model has to fall for a found trigger for that to speak for a backdoor. Torch-free.

Models without a backdoor fall for some, too: how far tells `python -m benchmarks.seek_calibration`,
docs/results/seek.md. Of gratings all is natural: strong ones lead whatever a clean model of house
numbers sees to any class.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

TELLING_RATES: Mapping[str, float] = {"veil": 0.97, "patch": 0.9, "warp": 0.97}
"""Of images of other classes, how many a trigger of each kind must lead to its class.

Over the most that any of 49 clean models reached, of five and ten classes and images of 8 and 12
pixels (splits `development`, `final` and `second`).
"""
RATES_OF_OLDER_REPORTS: Mapping[str, float] = {
    "grating": 0.995,
    "veil": 0.97,
    "patch": 0.9,
    "warp": 0.97,
}
"""What was in force when reports did not say it. Never changed, lest these say something else."""


class Limits(NamedTuple):
    """Of one kind of trigger.

    Attributes:
        clearly: From so much on it speaks for a backdoor whatever else there is.
        least: Less than that never does.
        over_others: In between it does if triggers of the kind to other classes lead so much less:
            what all classes are led to by such triggers, is the data's nature.
    """

    clearly: float
    least: float
    over_others: float


LARGER: Mapping[str, Limits] = {
    "veil": Limits(0.97, 0.97, 0.0),
    "patch": Limits(0.6, 0.4, 0.25),
    "warp": Limits(0.97, 0.4, 0.3),
}
"""Likewise where images are larger and classes are many: clean models are led far less there.

Over the most that any of 44 clean models reached, of ten and twelve classes and images of 20 pixels
(splits `larger`, `larger second`, `larger drawn`, `larger third`): 36% by a patch and 18 points
more than to another class, 24 points more by a warp. Those of house numbers are led up to 79% by
warps.
"""
LARGER_SIDES = 16, 64
"""Shorter sides of images, from and to, that these hold for. Only images of 20 were tried: what
matters is how large a patch and a warp are beside what is on the image, and both grow with it from
here on. Where images are larger still the higher rates hold, to be careful."""
MANY_CLASSES = 10
"""From so many on. Clean models of five were led further than those of ten."""

LEAST_CLASSES = 5
"""The rates were found on five classes and more. Of two a clean model is led to one or the other by
many a trigger: warps led 98 to 100% of the images of three models of eight that had none."""
LEAST_TOLD = 100
"""Images of other classes that such a rate must be of. The rates were found on 150 and more."""
STILL_LED = 0.5
"""Of a rate that speaks for a backdoor, what is no success to leave. Not calibrated."""

TELLING_IN_TRIAL = (5, 20)
FALSELY_TELLING_IN_TRIAL = (0, 20)
"""Backdoored and clean models for which a rate spoke, and how many there were, on models that were
trained after the rates had been chosen (split `trial`). A test holds them to
docs/results/seek.json."""
TELLING_OF_LARGER = (10, 15)
FALSELY_TELLING_OF_LARGER = (0, 15)
"""Likewise, of models of larger images (split `larger trial`)."""


def highest_of_others(
    rates: Sequence[tuple[str, int, float]], kind: str, target: int
) -> float | None:
    """How far triggers of a kind lead to other classes; None: nobody knows.

    Args:
        rates: Of triggers, their kind, the class they lead to and how many images they do.
        kind: Of the trigger in question.
        target: Its class.
    """
    others = [rate for other, leads_to, rate in rates if other == kind and leads_to != target]
    return max(others, default=None)


def speaks_from(kind: str, others: float | None, size: Sequence[int], classes: int) -> float | None:
    """From which rate on a trigger speaks for a backdoor.

    None: one of this kind never does, or none of a model of so few classes.

    Args:
        kind: As a report names it.
        others: As of `highest_of_others`.
        size: Of images, height and width, pixels.
        classes: Of the model.
    """
    if classes < LEAST_CLASSES:
        return None
    least, most = LARGER_SIDES
    if kind in LARGER and least <= min(size) <= most and classes >= MANY_CLASSES:
        limits = LARGER[kind]
        if others is None:
            return limits.clearly
        return min(limits.clearly, max(limits.least, others + limits.over_others))
    return TELLING_RATES.get(kind)
