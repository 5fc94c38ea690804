"""Whether a model gets its images as it expects them: prepared as for its training, and with its
outputs in the order of the data's classes.

A model that is given something else is wrong about images it knows. Training then teaches it the
other preparation, or the other order: every figure looks well, and the file that comes out is of no
use where the model's owner uses it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sanitizer.compute import images_at_once
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.metrics import wilson
from sanitizer.evaluation.predict import predict
from sanitizer.networks.normalized import NormalizedNetwork
from sanitizer.randomness import make_generator

LOOKED_AT = 256
"""Images at most. Of two halves one says which order is meant, the other whether it is: accuracies
are told apart there from about 16 points on."""
FIRST = 4
"""A preparation goes through every fourth image first, and through the others if it does better
there."""
BATCH_SIZE = 250
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that torchvision's and most other models of photographs are trained
with, for images in [0, 1]."""
NEAR = 0.02
"""Preparations whose means and deviations differ by no more are one."""

Prepared = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, a value a channel, for images in [0, 1]."""


@dataclass(frozen=True)
class Expectation:
    """What a model seems to expect.

    Attributes:
        images: That were looked at to tell.
        right: Of these, how many it gets right as a request has it.
        better: Another preparation with which it gets far more right; None: there is none.
        order: Output by output, the class of the data that it seems to stand for; None: its own.
        right_so: How many it gets right with that preparation and that order.
    """

    images: int
    right: int
    better: Prepared | None = None
    order: tuple[int, ...] | None = None
    right_so: int = 0

    @property
    def is_met(self) -> bool:
        """Whether nothing else than what it gets does far better."""
        return self.better is None and self.order is None


def find_expectation(
    network: NormalizedNetwork,
    images: ImageSet,
    *,
    num_classes: int,
    seed: int,
    device: torch.device,
    on_images: Callable[[int], None] = lambda _images: None,
) -> Expectation:
    """Tries other preparations of some images, and other orders of the model's outputs.

    A preparation or an order counts where the 95% interval of the accuracy with it lies over that
    of the accuracy as it is, on images that had no part in finding it.

    Args:
        network: Is put into eval mode.
        images: With their labels; at most `LOOKED_AT` of them are used.
        num_classes: Outputs of the network.
        seed: Of the choice of images.
        on_images: Called with how many images went through the network since the last call.
    """
    network.eval()
    generator = make_generator(seed, "expectation")
    places = torch.randperm(len(images), generator=generator)[:LOOKED_AT].numpy()
    # By class, and every other one into the other half: each has images of as many classes as may
    # be.
    places = places[np.argsort(images.labels[places], kind="stable")]
    labels = torch.from_numpy(images.labels[places])

    def answers(prepared_so: Prepared, places: NDArray[np.int64]) -> Tensor:
        prepared = NormalizedNetwork(network.network, *prepared_so).to(device).eval()
        given = []
        at_once = images_at_once(images.shape, BATCH_SIZE)
        for start in range(0, len(places), at_once):
            part = places[start : start + at_once]
            given.append(predict(prepared, torch.from_numpy(images.read(part)), device))
            on_images(len(part))
        return torch.cat(given)

    own: Prepared = (_values(network.mean), _values(network.std))
    given = answers(own, places)
    asked = _Tried(own, given, labels, num_classes)
    best = asked
    if not asked.cannot_be_beaten:
        some = slice(None, None, FIRST)
        right = int((given[some] == labels[some]).sum())
        ordered = _most_right(given[some], labels[some], num_classes)
        for candidate in _candidates(own, images, places):
            first = answers(candidate, places[some])
            # In the order that suits them best nearly all are right where classes are many.
            does_better = int((first == labels[some]).sum()) > right
            if not does_better and _most_right(first, labels[some], num_classes) <= ordered:
                continue
            tried = _Tried(candidate, answers(candidate, places), labels, num_classes)
            if tried.score > best.score:
                best = tried
    if best is not asked and not _lies_over(best.score, asked.score, asked.tested):
        best = asked
    if best is asked and asked.order is None:
        return Expectation(len(places), asked.right)
    return Expectation(
        images=len(places),
        right=asked.right,
        better=None if best is asked else best.prepared,
        order=best.order,
        right_so=best.right_ordered,
    )


class _Tried:
    """What came of a preparation.

    Attributes:
        right: Answers that are right as the outputs are.
        order: Another order that does far better; None: there is none.
        right_ordered: Answers that are right in that order, or as they are.
        tested: Images of the half that tells whether an order is meant.
        score: Of these, how many are right in the better order of the two.
    """

    def __init__(
        self, prepared: Prepared, answers: Tensor, labels: Tensor, num_classes: int
    ) -> None:
        self.prepared = prepared
        self.right = self.right_ordered = int((answers == labels).sum())
        order = match(answers[::2], labels[::2], num_classes)
        tested, their_labels = answers[1::2], labels[1::2]
        self.tested = len(tested)
        as_it_is = int((tested == their_labels).sum())
        ordered = int((order[tested] == their_labels).sum())
        self.order: tuple[int, ...] | None = None
        self.score = as_it_is
        if _lies_over(ordered, as_it_is, self.tested):
            self.order = tuple(order.tolist())
            self.right_ordered = int((order[answers] == labels).sum())
            self.score = ordered

    @property
    def cannot_be_beaten(self) -> bool:
        """Whether even a preparation with which all are right could not be told apart."""
        return not _lies_over(self.tested, self.score, self.tested)


def _most_right(answers: Tensor, labels: Tensor, num_classes: int) -> int:
    """How many are right in the order that suits them best."""
    return int((match(answers, labels, num_classes)[answers] == labels).sum())


def _lies_over(more: int, less: int, total: int) -> bool:
    return total > 0 and wilson(more, total).low > wilson(less, total).high


def match(answers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Which class each output stands for, by which answers go with which labels the most often.

    Pairs are taken greedily. Outputs that nothing speaks for keep their own class if it is free,
    and else get one that is.

    Args:
        answers: [n], in [0, num_classes).
        labels: [n], likewise.

    Returns:
        [num_classes], a permutation: the class of each output.
    """
    pairs, counts = torch.unique(labels + num_classes * answers, return_counts=True)
    order = torch.full((num_classes,), -1, dtype=torch.int64)
    taken = torch.zeros(num_classes, dtype=torch.bool)
    # Of equally many an output's own class comes first, so that nothing is moved for nothing.
    own = pairs % (num_classes + 1) == 0
    for place in (2 * counts + own).argsort(descending=True, stable=True).tolist():
        output, label = divmod(int(pairs[place]), num_classes)
        if order[output] < 0 and not taken[label]:
            order[output] = label
            taken[label] = True
    for output in range(num_classes):
        if order[output] < 0 and not taken[output]:
            order[output] = output
            taken[output] = True
    free = (~taken).nonzero().flatten()
    order[order < 0] = free
    return order


def _candidates(own: Prepared, images: ImageSet, places: NDArray[np.int64]) -> list[Prepared]:
    """Preparations that are common, and that by the images' own figures; without `own`."""
    channels = len(own[0])
    # Of these few: more would say the same to two digits.
    pixels = images.read(places[:: max(1, len(places) // 64)]).astype(np.float64) / 255
    mean = tuple(round(float(value), 3) for value in pixels.mean(axis=(0, 2, 3)))
    std = tuple(max(0.01, round(float(value), 3)) for value in pixels.std(axis=(0, 2, 3)))
    common: list[Prepared] = [
        ((0.0,) * channels, (1.0,) * channels),
        ((0.5,) * channels, (0.5,) * channels),
        (mean, std),
        ((0.0,) * channels, (round(1 / 255, 6),) * channels),
    ]
    if channels == len(IMAGENET[0]):
        common.insert(1, IMAGENET)
    return [each for each in common if not _are_near(each, own)]


def _are_near(one: Prepared, other: Prepared) -> bool:
    first, second = np.array(one), np.array(other)
    return bool((np.abs(first - second) <= NEAR * np.maximum(np.abs(second), NEAR)).all())


def _values(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values.flatten())
