"""What searches of a model for triggers say together.

A backdoor is a shortcut: in a model that has one, the change that leads images to its target is
much smaller than those for the other classes (Neural Cleanse, Wang et al., IEEE S&P 2019). Three
kinds of change are tried, since triggers differ: a patch; a pattern that is added to the whole
image; and, for warps and filters, which no fixed picture imitates, a shift of the channels of a
feature map.

What is not found may still be there: a trigger larger than those looked for, one that only some
images carry to the target, or one that is none of these three. How often that is so, and how often
a clean model is accused, was tried on small models (docs/results/inspection.md).
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from sanitizer.evaluation.inversion import (
    Found,
    Subject,
    groups_of,
    likely_targets,
    rate_of,
    search,
)
from sanitizer.report.model import (
    SUSPICIOUS_ANOMALY,
    ChangeFamily,
    ClassInspection,
    FoundChange,
    Inspection,
)

SEARCHED_IMAGES = 1000
"""At most: a batch is drawn of them for each step."""

SUSPICIOUS_RATE = 0.6
"""How many more images than without it a change must lead to its class to count as a finding.

Classes of clean development models that stood out came to 0.48, targets of backdoors that did to
0.67 and more (docs/results/inspection.md).
"""
LEAST_DEVIATION = 0.25
"""Of logarithms of sizes: sizes that differ by less than a quarter are alike."""
DEVIATION = 1.4826
"""Makes of a median absolute deviation the standard deviation of a normal distribution."""


def inspect(
    subject: Subject,
    found: list[Found],
    on_search: Callable[[], None] = lambda: None,
    *,
    first: Sequence[int] = (),
) -> Inspection:
    """Searches a model for a change of every family that leads to a class, class by class.

    Args:
        found: Gets each change that is found. What is in it, of an inspection of the same model
            that was interrupted, is not searched again.
        on_search: Called after the searches that were made together.
        first: Classes that are searched in any case, where there are too many for all.
    """
    begun = monotonic()
    targets = likely_targets(subject, first)
    there = {(each.target, each.change.family) for each in found}
    for family in ChangeFamily:
        for group in groups_of(subject, targets):
            missing = [target for target in group if (target, family) not in there]
            if missing:
                found += search(subject, missing, family)
                on_search()
    classes = _by_class(subject, found)
    suspicious = [each for each in classes if is_suspicious(each)]
    suspicious.sort(key=_strength, reverse=True)
    return Inspection(
        classes=classes,
        num_classes=subject.num_classes,
        anomaly=max(_strength(each) for each in classes),
        suspicious=[each.target_class for each in suspicious],
        searched_images=len(subject.searched),
        measured_images=len(subject.measured),
        seconds=round(monotonic() - begun, 3),
    )


def _by_class(subject: Subject, found: Sequence[Found]) -> list[ClassInspection]:
    anomalies: dict[tuple[int, ChangeFamily], float] = {}
    for family in ChangeFamily:
        same = [each for each in found if each.change.family is family]
        for each, anomaly in zip(same, anomalies_of([each.size for each in same]), strict=True):
            anomalies[each.target, family] = anomaly if each.reached else min(0.0, anomaly)
    return classes_of(subject, found, anomalies)


def classes_of(
    subject: Subject,
    found: Sequence[Found],
    anomalies: Mapping[tuple[int, ChangeFamily], float],
) -> list[ClassInspection]:
    """What changes do to a model, class by class.

    Args:
        anomalies: By target and family; 0 where there is none.
    """
    by_target: dict[int, list[FoundChange]] = {}
    for each in found:
        family = each.change.family
        unit = 255 if family is ChangeFamily.PATTERN else 1
        change = FoundChange(
            family=family,
            size=unit * each.size,
            reached=each.reached,
            rate=rate_of(subject, each.target, each.change),
            anomaly=anomalies.get((each.target, family), 0.0),
        )
        by_target.setdefault(each.target, []).append(change)
    return [
        ClassInspection(
            target_class=target,
            natural_rate=rate_of(subject, target, None),
            changes=changes,
            estimated_asr=max(change.rate.value for change in changes),
        )
        for target, changes in by_target.items()
    ]


def anomalies_of(sizes: Sequence[float]) -> list[float]:
    """How far the logarithm of each size lies under the median, in deviations.

    The deviation is the median absolute one, times 1.4826 (Neural Cleanse, section IV); of
    logarithms, since sizes differ by factors. It counts as `LEAST_DEVIATION` at least, lest classes
    that are alike make an outlier of any.

    Args:
        sizes: Positive, at least one.
    """
    logarithms = np.log(np.maximum(sizes, 1e-12))
    median = np.median(logarithms)
    deviation = max(LEAST_DEVIATION, DEVIATION * float(np.median(np.abs(logarithms - median))))
    return [float(value) for value in (median - logarithms) / deviation]


def is_suspicious(inspection: ClassInspection) -> bool:
    """Whether a change stands out that leads most images to the class."""
    return _strength(inspection) >= SUSPICIOUS_ANOMALY


def _strength(inspection: ClassInspection) -> float:
    """The highest anomaly among changes that lead many images to the class; 0 without one."""
    natural = inspection.natural_rate.value
    return max(
        (
            change.anomaly
            for change in inspection.changes
            if change.rate.value - natural >= SUSPICIOUS_RATE
        ),
        default=0.0,
    )


def looks_of(
    inspection: Inspection, found: Sequence[Found]
) -> dict[ChangeFamily, NDArray[np.uint8]]:
    """What was found for the class that stands out most, as pictures, [C, H, W]."""
    target = inspection.strongest.target_class
    looks = {each.change.family: each.change.look() for each in found if each.target == target}
    return {
        family: (255 * look).round().to(torch.uint8).cpu().numpy()
        for family, look in looks.items()
        if look is not None
    }
