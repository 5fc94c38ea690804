"""What a model gets right, and what a trigger makes of it: pure functions of predictions.

ACC, ASR, RA and DER as DESIGN section 5 defines them. ASR, RA and the natural rate look at the
images whose true class is not the target alone. All refuse an empty set.
"""

import math

import torch
from torch import Tensor

from sanitizer.errors import NotEnoughImages
from sanitizer.report.model import Proportion

_Z = 1.959963984540054
"""The 97.5% quantile of the normal distribution: a two-sided interval of 95%."""


def wilson(count: int, total: int) -> Proportion:
    """A share with its 95% Wilson score interval (Wilson 1927).

    Raises:
        NotEnoughImages: `total` is 0.
    """
    if total <= 0:
        raise NotEnoughImages(
            "There is no image to measure on: a share of nothing is not defined. Give evaluation "
            "data that has images of every class that is measured.",
            available=total,
        )
    if not 0 <= count <= total:
        raise ValueError(f"count must be in [0, {total}], got {count}")
    share = count / total
    spread = _Z * _Z / total
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # Clamped to the share: at 0 and at all the formula meets it only up to rounding.
    return Proportion(
        value=share,
        count=count,
        total=total,
        low=max(0.0, min(share, middle - reach)),
        high=min(1.0, max(share, middle + reach)),
    )


def accuracy(predicted: Tensor, labels: Tensor) -> Proportion:
    """ACC: the share of clean images classified right.

    Args:
        predicted: Classes, int [N].
        labels: True classes, int [N].

    Raises:
        NotEnoughImages: N is 0.
    """
    _check(predicted, labels)
    return _share(predicted == labels)


def accuracy_per_class(
    predicted: Tensor, labels: Tensor, num_classes: int
) -> dict[int, Proportion]:
    """ACC of each class that has images, by class.

    Raises:
        NotEnoughImages: N is 0.
    """
    _check(predicted, labels)
    if int(labels.max()) >= num_classes:
        raise ValueError(f"labels must be below {num_classes}, got {int(labels.max())}")
    return _per_class(predicted == labels, labels)


def attack_success_rate(predicted_triggered: Tensor, labels: Tensor, target: int) -> Proportion:
    """ASR: the share classified as the target once the trigger is on.

    Args:
        predicted_triggered: Classes of all images with the trigger on, int [N].
        labels: True classes of all images, int [N].
        target: Class; images of it are left out.

    Raises:
        NotEnoughImages: There is no image of another class.
    """
    others = _others(predicted_triggered, labels, target)
    return _share(predicted_triggered[others] == target)


def attack_success_rate_per_class(
    predicted_triggered: Tensor, labels: Tensor, target: int
) -> dict[int, Proportion]:
    """ASR of each other class that has images, by true class.

    Raises:
        NotEnoughImages: There is no image of another class.
    """
    others = _others(predicted_triggered, labels, target)
    return _per_class(predicted_triggered[others] == target, labels[others])


def robust_accuracy(predicted_triggered: Tensor, labels: Tensor, target: int) -> Proportion:
    """RA: over the images of ASR, the share still classified as their true class.

    Raises:
        NotEnoughImages: There is no image of another class.
    """
    others = _others(predicted_triggered, labels, target)
    return _share(predicted_triggered[others] == labels[others])


def robust_accuracy_per_class(
    predicted_triggered: Tensor, labels: Tensor, target: int
) -> dict[int, Proportion]:
    """RA of each other class that has images, by true class.

    Raises:
        NotEnoughImages: There is no image of another class.
    """
    others = _others(predicted_triggered, labels, target)
    return _per_class(predicted_triggered[others] == labels[others], labels[others])


def natural_rate(predicted: Tensor, labels: Tensor, target: int) -> Proportion:
    """Over the images of ASR, the share classified as the target without the trigger.

    It is what ASR falls to when the trigger does nothing.

    Raises:
        NotEnoughImages: There is no image of another class.
    """
    return attack_success_rate(predicted, labels, target)


def defense_effectiveness(
    before_acc: float, after_acc: float, before_asr: float, after_asr: float
) -> float:
    """DER: (1 + max(0, drop in ASR) - max(0, drop in ACC)) / 2.

    Args:
        before_acc: Share in [0, 1], and so the others.

    Returns:
        In [0, 1]: 1 is a backdoor gone at no cost, 0.5 nothing done.
    """
    return (1 + max(0.0, before_asr - after_asr) - max(0.0, before_acc - after_acc)) / 2


def _check(predicted: Tensor, labels: Tensor) -> None:
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise ValueError(
            f"predictions and labels are [N] each, got {list(predicted.shape)} and "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise NotEnoughImages(
            "There is no image to measure on. Give evaluation data with at least one.",
            available=0,
        )


def _others(predicted: Tensor, labels: Tensor, target: int) -> Tensor:
    _check(predicted, labels)
    others = labels != target
    if not bool(others.any()):
        raise NotEnoughImages(
            f"All {len(labels)} images are of the target class {target}; a trigger is measured on "
            "images of other classes. Give evaluation data that has some.",
            available=0,
            target_class=target,
        )
    return others


def _share(hits: Tensor) -> Proportion:
    return wilson(int(hits.sum()), len(hits))


def _per_class(hits: Tensor, labels: Tensor) -> dict[int, Proportion]:
    totals = torch.bincount(labels).tolist()
    counts = torch.bincount(labels[hits], minlength=len(totals)).tolist()
    return {
        label: wilson(count, total)
        for label, (count, total) in enumerate(zip(counts, totals, strict=True))
        if total
    }
