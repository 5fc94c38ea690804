"""Searches a model for the smallest change of images that leads them to a class.

A change is learned by descent, on clean images alone (Neural Cleanse, Wang et al., IEEE S&P 2019).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.compute import images_at_once
from sanitizer.cost.workload import MAX_TARGETS, SEARCH_BATCH, SEARCH_STEPS
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.changes import Change, FeatureShift, Patch, Pattern, logits_of
from sanitizer.evaluation.metrics import wilson
from sanitizer.methods.perturbed import root_mean_square, within
from sanitizer.methods.sgd import descending
from sanitizer.networks.taps import TapPoint, tapped
from sanitizer.randomness import make_generator
from sanitizer.report.model import ChangeFamily, Proportion
from sanitizer.spec import Phase, Training

WANTED_RATE = 0.9
"""Of images that a change must lead to its class before it is made smaller."""
ROUND = 10
"""Steps between two looks at the rate."""
HARDER, EASIER = 2.0, 2.0**-1.5
"""What the weight of the size is multiplied with: down faster than up, as in Neural Cleanse."""

TOGETHER_PIXELS = 1 << 16
"""Of a batch that several searches share. Larger ones were no faster on a CPU."""

MEASURED = 250
"""Images that go through a network together where nothing is learned."""

ATTEMPTS, MISLEADING_STEPS = 8, 20
"""Patterns by which classes are chosen where there are many, and steps of each."""

_ADAM = Training(
    phases=(Phase(epochs=1, learning_rate=1.0),), optimizer="adam", momentum=0.5, weight_decay=0.0
)
"""Of a search; learning rates are the families' own. The momentum is Neural Cleanse's."""


@dataclass(frozen=True)
class Subject:
    """What is searched, and with which images.

    Attributes:
        network: In eval mode; takes float images in [0, 1]. Its weights stay as they are.
        point: Where its features are shifted.
        num_classes: Of the network.
        searched: Clean images that changes are made on.
        measured: Others, that their rates are measured on.
        device: Where the network is.
        seed: Of the run.
    """

    network: nn.Module
    point: TapPoint
    num_classes: int
    searched: ImageSet
    measured: ImageSet
    device: torch.device
    seed: int

    @cached_property
    def deviations(self) -> Tensor:
        """Of each channel of the tapped feature map, over clean images; [C].

        These are drawn: the first may be of one class.
        """
        generator = make_generator(self.seed, "deviations")
        places = torch.randperm(len(self.searched), generator=generator)[:MEASURED].sort().values
        at_once = images_at_once(self.searched.shape, MEASURED)
        values, sums, squares = 0, torch.zeros(()), torch.zeros(())
        with torch.no_grad(), tapped(self.network, [self.point]) as taps:
            for part in torch.split(places, at_once):
                self.network(self.images(self.searched, part.numpy()))
                (features,) = taps.take()
                by_channel = features.transpose(0, 1).flatten(1).double()
                values += by_channel.shape[1]
                sums = by_channel.sum(dim=1) + sums
                squares = by_channel.square().sum(dim=1) + squares
        variances = (squares - sums.square() / values).clamp(min=0) / max(1, values - 1)
        return variances.sqrt().to(features.dtype)

    def images(self, images: ImageSet, places: NDArray[np.int64]) -> Tensor:
        """Some of a set as the network takes them, [n, C, H, W]."""
        weight = next(self.network.parameters())
        pixels = torch.from_numpy(images.read(places)).to(self.device)
        return pixels.to(weight.dtype).div_(255).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Found:
    """A change, cut down to its budget.

    Attributes:
        target: The class it leads to.
        size: Before it was cut.
        reached: Whether it led enough images there before.
    """

    target: int
    change: Change
    size: float
    reached: bool

    def state(self) -> dict[str, Any]:
        """All of it in tensors and numbers, for a checkpoint."""
        return {
            "target": self.target,
            "family": self.change.family.value,
            "change": self.change.state_dict(),
            "size": self.size,
            "reached": self.reached,
        }


def restore(subject: "Subject", state: Mapping[str, Any]) -> Found:
    """What `state` made of a find."""
    family = ChangeFamily(state["family"])
    change = _begin(subject, family, make_generator()).to(subject.device)
    change.load_state_dict(state["change"])
    return Found(state["target"], change, state["size"], state["reached"])


def groups_of(subject: Subject, targets: Sequence[int]) -> list[list[int]]:
    """Classes whose searches go through the network as one batch, in their order.

    A batch of one search of small images leaves a processor idle between the layers: of ten classes
    and 8 x 8 pixels together took half of the time. Larger images come one class at a time.
    """
    _, height, width = subject.searched.shape
    together = max(1, TOGETHER_PIXELS // (SEARCH_BATCH * height * width))
    return [list(targets[i : i + together]) for i in range(0, len(targets), together)]


def search(subject: Subject, targets: Sequence[int], family: ChangeFamily) -> list[Found]:
    """For each of some classes the smallest change of a family that leads images of others there.

    Descends by the cross-entropy with the target plus a weighted size. The weight grows for as long
    as enough images arrive, and falls where they do not; the smallest change with which they did is
    kept. The searches know nothing of one another but share the network's passes.

    Raises:
        ValueError: There is no image of another class.
    """
    searches = [_Search(subject, target, family) for target in targets]
    changes = nn.ModuleList(each.change for each in searches)
    rate = searches[0].change.learning_rate
    with _frozen(subject.network), descending(changes, _ADAM) as descent:
        for step in range(1, SEARCH_STEPS + 1):
            images = [each.draw() for each in searches]
            logits = logits_of(subject.network, [each.change for each in searches], images)
            shares = torch.split(logits, SEARCH_BATCH)
            loss = torch.stack(
                [each.loss(share) for each, share in zip(searches, shares, strict=True)]
            ).sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            descent.step(rate)
            if step % ROUND == 0:
                for each in searches:
                    each.look()
    return [each.end() for each in searches]


class _Search:
    """One search: its change, what its size weighs, and the smallest that was enough."""

    def __init__(self, subject: Subject, target: int, family: ChangeFamily) -> None:
        self._subject = subject
        self._target = target
        self._others = np.flatnonzero(subject.searched.labels != target)
        if not len(self._others):
            raise ValueError(f"images of other classes than {target} were expected, there are none")
        self._generator = make_generator(subject.seed, "inversion", target, family.value)
        self.change = _begin(subject, family, self._generator).to(subject.device)
        self._labels = torch.full((SEARCH_BATCH,), target, device=subject.device)
        self._weight = self.change.weight
        self._hits = torch.zeros((), device=subject.device)
        self._kept: dict[str, Tensor] | None = None
        self._smallest = math.inf

    def draw(self) -> Tensor:
        """Images of the next step."""
        shape = (SEARCH_BATCH,)
        drawn = torch.randint(len(self._others), shape, generator=self._generator).numpy()
        return self._subject.images(self._subject.searched, self._others[drawn])

    def loss(self, logits: Tensor) -> Tensor:
        """Of the step, from the logits of its changed images."""
        self._hits += (logits.argmax(dim=1) == self._labels).sum()
        return functional.cross_entropy(logits, self._labels) + self._weight * self.change.size()

    def look(self) -> None:
        """At the rate of the last steps: keeps the change if it is the best, sets the weight."""
        rate = self._hits.item() / (ROUND * SEARCH_BATCH)
        self._hits.zero_()
        if rate < WANTED_RATE:
            self._weight *= EASIER
            return
        self._weight *= HARDER
        size = self.change.size().item()
        if size < self._smallest:
            self._smallest = size
            state = self.change.state_dict()
            self._kept = {name: value.clone() for name, value in state.items()}

    def end(self) -> Found:
        """The best change, cut down."""
        if self._kept is not None:
            self.change.load_state_dict(self._kept)
        size = self.change.size().item()
        self.change.cut()
        return Found(self._target, self.change, size, self._kept is not None)


@torch.no_grad()
def rate_of(subject: Subject, target: int, change: Change | None) -> Proportion:
    """The share of measured images of other classes that is taken for a class.

    Args:
        change: What is done to the images; None: nothing.

    Raises:
        NotEnoughImages: There are no images of other classes.
    """
    others = np.flatnonzero(subject.measured.labels != target)
    network, hits = subject.network, 0
    at_once = images_at_once(subject.measured.shape, MEASURED)
    for start in range(0, len(others), at_once):
        images = subject.images(subject.measured, others[start : start + at_once])
        logits = network(images) if change is None else logits_of(network, [change], [images])
        hits += int((logits.argmax(dim=1) == target).sum())
    return wilson(hits, len(others))


def _begin(subject: Subject, family: ChangeFamily, generator: torch.Generator) -> Change:
    match family:
        case ChangeFamily.PATCH:
            return Patch(subject.searched.shape, generator)
        case ChangeFamily.PATTERN:
            return Pattern(subject.searched.shape, generator)
        case ChangeFamily.FEATURES:
            return FeatureShift(subject.point, subject.deviations, generator)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Weights get no gradient within the block, which costs a third of the backward pass."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def likely_targets(subject: Subject, first: Sequence[int] = ()) -> list[int]:
    """The classes to search: all, or of many these first and those that misled images fall into
    most.

    A pattern that is added to all images, and made to mislead as many as it can, tends to lead them
    to the target of a backdoor (Zeng et al., ICLR 2022, make use of that).
    """
    if subject.num_classes <= MAX_TARGETS:
        return list(range(subject.num_classes))
    counts = np.zeros(subject.num_classes, dtype=np.int64)
    for attempt in range(ATTEMPTS):
        counts += _misled(subject, make_generator(subject.seed, "likely targets", attempt))
    # Where counts are equal, the lower class: the same each time.
    order = np.argsort(-counts, kind="stable")
    return sorted(list(dict.fromkeys([*first, *order.tolist()]))[:MAX_TARGETS])


def _misled(subject: Subject, generator: torch.Generator) -> NDArray[np.int64]:
    """How many images of other classes one pattern leads to each class."""
    images_at_all = len(subject.searched)
    values = torch.zeros(1, *subject.searched.shape, device=subject.device)
    values += 0.01 * torch.randn(values.shape, generator=generator).to(subject.device)
    counts = np.zeros(subject.num_classes, dtype=np.int64)
    with _frozen(subject.network):
        for step in range(MISLEADING_STEPS + 1):
            drawn = torch.randint(images_at_all, (SEARCH_BATCH,), generator=generator).numpy()
            images = subject.images(subject.searched, drawn)
            labels = torch.from_numpy(subject.searched.labels[drawn]).to(subject.device)
            values = values.detach().requires_grad_()
            logits = subject.network((images + values).clamp(0, 1))
            if step == MISLEADING_STEPS:
                answers = logits.argmax(dim=1)
                wrong = answers[answers != labels].cpu().numpy()
                counts += np.bincount(wrong, minlength=subject.num_classes)
                break
            (slope,) = torch.autograd.grad(functional.cross_entropy(logits, labels), values)
            step_size = Pattern.budget / 4 / root_mean_square(slope).clamp(min=1e-12)
            values = within(values.detach() + step_size * slope, Pattern.budget)
    return counts
