"""Searches a model for triggers, with clean images alone.

For each class the smallest change is sought that leads images of other classes there. A backdoor is
a shortcut: in a model that has one, the change for its target is much smaller than those for the
other classes (Neural Cleanse, Wang et al., IEEE S&P 2019). Three kinds of change are tried, since
triggers differ: a patch; a pattern that is added to the whole image; and, for warps and filters,
which no fixed picture imitates, a shift of the channels of a feature map.

What is not found may still be there: a trigger larger than those looked for, one that only some
images carry to the target, or one that is none of these three.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.cost.workload import MAX_TARGETS, SEARCH_BATCH, SEARCH_STEPS
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.metrics import wilson
from sanitizer.methods.sgd import descending
from sanitizer.networks.taps import TapPoint, tapped, unwrapped
from sanitizer.randomness import make_generator
from sanitizer.report.model import (
    SUSPICIOUS_ANOMALY,
    ChangeFamily,
    ClassInspection,
    FoundChange,
    Inspection,
    Proportion,
)
from sanitizer.spec import Phase, Training

SEARCHED_IMAGES = 1000
"""At most: a batch is drawn of them for each step."""

WANTED_RATE = 0.9
"""Of images that a change must lead to its class before it is made smaller."""
ROUND = 10
"""Steps between two looks at the rate."""
HARDER, EASIER = 2.0, 2.0**-1.5
"""What the weight of the size is multiplied with: down faster than up, as in Neural Cleanse."""

ATTEMPTS, MISLEADING_STEPS = 8, 20
"""Patterns by which these are chosen, and steps of each."""

LEAST_DEVIATION = 0.25
SUSPICIOUS_RATE = 0.5
"""How many more images than without it a change must lead to its class to count as a finding."""

LEAST_PIXELS = 4
"""That a patch may have, however small the image is."""

GREY = 0.5

DEVIATION = 1.4826
"""Makes of a median absolute deviation the standard deviation of a normal distribution."""

_ADAM = Training(
    phases=(Phase(epochs=1, learning_rate=1.0),), optimizer="adam", momentum=0.5, weight_decay=0.0
)
"""Of a search; learning rates are the families' own. The momentum is Neural Cleanse's."""


class Change(nn.Module, ABC):
    """One change of every image, learned by descent.

    Attributes:
        family: What kind it is.
        learning_rate: Of its parameters.
        weight: What its size weighs beside the cross-entropy to begin with.
        budget: The size that a trigger may have, in the unit of `size`.
    """

    family: ClassVar[ChangeFamily]
    learning_rate: ClassVar[float]
    weight: ClassVar[float]
    budget: ClassVar[float]

    @abstractmethod
    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """What a network makes of changed images, [B, classes].

        Args:
            images: [B, C, H, W], in [0, 1].
        """

    @abstractmethod
    def size(self) -> Tensor:
        """A scalar; see `FoundChange.size`, but pixel values are in [0, 1]."""

    @abstractmethod
    def cut(self) -> None:
        """Makes it no larger than its budget."""

    def look(self) -> Tensor | None:
        """What it looks like on a grey image, [C, H, W], in [0, 1]; None: it is not in the image.

        What is added is shown as large as the image bears.
        """
        return None


class Patch(Change):
    """Replaces pixels: (1 - mask) image + mask picture (Neural Cleanse, equation 2)."""

    family = ChangeFamily.PATCH
    learning_rate = 0.1
    weight = 1.0
    budget = 0.01

    kept: Tensor

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        # A quarter of every pixel: with less, the first steps feel nothing of the picture.
        self.mask_logits = nn.Parameter(torch.full((1, 1, *shape[1:]), -1.0))
        self.picture_logits = nn.Parameter(torch.randn(1, *shape, generator=generator))
        self.register_buffer("kept", torch.ones(1, 1, *shape[1:]))

    @property
    def mask(self) -> Tensor:
        """[1, 1, H, W], in [0, 1]."""
        return self.mask_logits.sigmoid() * self.kept

    @property
    def picture(self) -> Tensor:
        """[1, C, H, W], in [0, 1]."""
        return self.picture_logits.sigmoid()

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = network(images + self.mask * (self.picture - images))
        return logits

    def size(self) -> Tensor:
        return self.mask.mean()

    @torch.no_grad()
    def look(self) -> Tensor:
        return (GREY + self.mask_logits.sigmoid() * (self.picture - GREY))[0]

    @torch.no_grad()
    def cut(self) -> None:
        """Keeps the pixels that are replaced most."""
        mask = self.mask.flatten()
        order = mask.argsort(descending=True, stable=True)
        within = mask[order].cumsum(0) <= max(self.budget * len(mask), LEAST_PIXELS)
        kept = torch.zeros_like(mask)
        kept[order[within]] = 1
        self.kept.copy_(kept.view_as(self.kept))


class Pattern(Change):
    """Adds the same values to every image, which stays in [0, 1]."""

    family = ChangeFamily.PATTERN
    learning_rate = 0.005
    weight = 20.0
    budget = 8 / 255

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.values = nn.Parameter(0.01 * torch.randn(1, *shape, generator=generator))

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = network((images + self.values).clamp(0, 1))
        return logits

    def size(self) -> Tensor:
        return _root_mean_square(self.values)

    @torch.no_grad()
    def look(self) -> Tensor:
        largest = self.values.abs().max().clamp(min=1e-12)
        return (GREY + (1 - GREY) * self.values / largest)[0]

    @torch.no_grad()
    def cut(self) -> None:
        """Scales it."""
        self.values.mul_(min(1.0, self.budget / self.size().item()))


class FeatureShift(Change):
    """Adds the same values to a feature map of every image, one a channel.

    Args:
        point: Whose output it is.
        deviations: Of its channels over clean images, [C]: the unit of the shift.
    """

    family = ChangeFamily.FEATURES
    learning_rate = 0.05
    weight = 1.0
    budget = 0.5

    deviations: Tensor

    def __init__(self, point: TapPoint, deviations: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self._point = point
        self.values = nn.Parameter(0.05 * torch.randn(point.channels, generator=generator))
        self.register_buffer("deviations", deviations)

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        shift = self.values * self.deviations
        if self._point.layout == "nchw":
            shift = shift.view(-1, 1, 1)

        def move(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
            return output + shift

        module = unwrapped(network).get_submodule(self._point.module)
        handle = module.register_forward_hook(move)
        try:
            logits: Tensor = network(images)
        finally:
            handle.remove()
        return logits

    def size(self) -> Tensor:
        return _root_mean_square(self.values)

    @torch.no_grad()
    def cut(self) -> None:
        """Scales it."""
        self.values.mul_(min(1.0, self.budget / self.size().item()))


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


# --- The search ----------------------------------------------------------------------------------


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


def search(subject: Subject, target: int, family: ChangeFamily) -> Found:
    """The smallest change of a family that leads images of other classes to one.

    Descends by the cross-entropy with the target plus a weighted size. The weight grows for as long
    as enough images arrive, and falls where they do not; the smallest change with which they did is
    kept.

    Raises:
        ValueError: There is no image of another class.
    """
    others = np.flatnonzero(subject.searched.labels != target)
    if not len(others):
        raise ValueError(f"images of other classes than {target} were expected, there are none")
    generator = make_generator(subject.seed, "inversion", target, family.value)
    change = _begin(subject, family, generator).to(subject.device)
    weight, hits, seen = change.weight, 0.0, 0
    kept: dict[str, Tensor] | None = None
    smallest = math.inf
    with _frozen(subject.network), descending(change, _ADAM) as descent:
        for step in range(1, SEARCH_STEPS + 1):
            drawn = torch.randint(len(others), (SEARCH_BATCH,), generator=generator).numpy()
            images = _images(subject, subject.searched, others[drawn])
            labels = torch.full((SEARCH_BATCH,), target, device=subject.device)
            logits = change.logits(subject.network, images)
            loss = functional.cross_entropy(logits, labels) + weight * change.size()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            descent.step(change.learning_rate)
            hits += float((logits.argmax(dim=1) == labels).sum())
            seen += SEARCH_BATCH
            if step % ROUND:
                continue
            size = change.size().item()
            if hits / seen < WANTED_RATE:
                weight *= EASIER
            else:
                weight *= HARDER
                if size < smallest:
                    smallest = size
                    kept = {name: value.clone() for name, value in change.state_dict().items()}
            hits, seen = 0.0, 0
    if kept is not None:
        change.load_state_dict(kept)
    size = change.size().item()
    change.cut()
    return Found(target, change, size, kept is not None)


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
    for start in range(0, len(others), 250):
        images = _images(subject, subject.measured, others[start : start + 250])
        logits = network(images) if change is None else change.logits(network, images)
        hits += int((logits.argmax(dim=1) == target).sum())
    return wilson(hits, len(others))


def _begin(subject: Subject, family: ChangeFamily, generator: torch.Generator) -> Change:
    match family:
        case ChangeFamily.PATCH:
            return Patch(subject.searched.shape, generator)
        case ChangeFamily.PATTERN:
            return Pattern(subject.searched.shape, generator)
        case ChangeFamily.FEATURES:
            return FeatureShift(subject.point, _deviations(subject), generator)


@torch.no_grad()
def _deviations(subject: Subject) -> Tensor:
    """Of each channel of the tapped feature map, over clean images; [C]."""
    with tapped(subject.network, [subject.point]) as taps:
        subject.network(
            _images(subject, subject.searched, np.arange(min(250, len(subject.searched))))
        )
        (features,) = taps.take()
    return features.transpose(0, 1).flatten(1).std(dim=1)


def _images(subject: Subject, images: ImageSet, places: NDArray[np.int64]) -> Tensor:
    pixels = torch.from_numpy(images.read(places)).to(subject.device)
    weight = next(subject.network.parameters())
    return pixels.to(weight.dtype).div_(255).to(memory_format=torch.channels_last)


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


# --- What all searches of a model say together ---------------------------------------------------


def inspect(
    subject: Subject, found: list[Found], on_search: Callable[[], None] = lambda: None
) -> Inspection:
    """Searches a model for a change of every family that leads to a class, class by class.

    Args:
        found: Gets each change that is found. What is in it, of an inspection of the same model
            that was interrupted, is not searched again.
        on_search: Called after each search that was made.
    """
    begun = monotonic()
    targets = likely_targets(subject)
    there = {(each.target, each.change.family) for each in found}
    for target in targets:
        for family in ChangeFamily:
            if (target, family) not in there:
                found.append(search(subject, target, family))
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


def likely_targets(subject: Subject) -> list[int]:
    """The classes to search: all, or of many those that misled images fall into most.

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
    return sorted(int(target) for target in order[:MAX_TARGETS])


def _misled(subject: Subject, generator: torch.Generator) -> NDArray[np.int64]:
    """How many images of other classes one pattern leads to each class."""
    images_at_all = len(subject.searched)
    values = torch.zeros(1, *subject.searched.shape, device=subject.device)
    values += 0.01 * torch.randn(values.shape, generator=generator).to(subject.device)
    counts = np.zeros(subject.num_classes, dtype=np.int64)
    with _frozen(subject.network):
        for step in range(MISLEADING_STEPS + 1):
            drawn = torch.randint(images_at_all, (SEARCH_BATCH,), generator=generator).numpy()
            images = _images(subject, subject.searched, drawn)
            labels = torch.from_numpy(subject.searched.labels[drawn]).to(subject.device)
            values = values.detach().requires_grad_()
            logits = subject.network((images + values).clamp(0, 1))
            if step == MISLEADING_STEPS:
                answers = logits.argmax(dim=1)
                wrong = answers[answers != labels].cpu().numpy()
                counts += np.bincount(wrong, minlength=subject.num_classes)
                break
            (slope,) = torch.autograd.grad(functional.cross_entropy(logits, labels), values)
            step_size = Pattern.budget / 4 / _root_mean_square(slope).clamp(min=1e-12)
            moved = values.detach() + step_size * slope
            values = moved * (Pattern.budget / _root_mean_square(moved)).clamp(max=1.0)
    return counts


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
