"""Changes of images that a search for triggers tries: a patch, a pattern, a shift of features."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sanitizer.methods.perturbed import root_mean_square, within
from sanitizer.networks.taps import TapPoint, unwrapped
from sanitizer.report.model import ChangeFamily

LEAST_PIXELS = 4
"""That a patch may have, however small the image is."""

GREY = 0.5


class Change(nn.Module, ABC):
    """One change of every image, learned by descent.

    Learning rates were chosen on small models (docs/decisions/0023): with a third of the patch's,
    100 steps left the patch of a backdoor as large as those of other classes.

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

    def changed(self, images: Tensor) -> Tensor:
        """The images with the change on, [B, C, H, W].

        Args:
            images: [B, C, H, W], in [0, 1].
        """
        return images

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
    learning_rate = 0.3
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

    def changed(self, images: Tensor) -> Tensor:
        return images + self.mask * (self.picture - images)

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
    learning_rate = 0.02
    weight = 20.0
    budget = 8 / 255

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        self.values = nn.Parameter(0.01 * torch.randn(1, *shape, generator=generator))

    def changed(self, images: Tensor) -> Tensor:
        return (images + self.values).clamp(0, 1)

    def size(self) -> Tensor:
        return root_mean_square(self.values)

    @torch.no_grad()
    def look(self) -> Tensor:
        largest = self.values.abs().max().clamp(min=1e-12)
        return (GREY + (1 - GREY) * self.values / largest)[0]

    @torch.no_grad()
    def cut(self) -> None:
        """Scales it."""
        self.values.copy_(within(self.values, self.budget))


class FeatureShift(Change):
    """Adds the same values to a feature map of every image, one a channel.

    Args:
        point: Whose output it is.
        deviations: Of its channels over clean images, [C]: the unit of the shift.
    """

    family = ChangeFamily.FEATURES
    learning_rate = 0.1
    weight = 1.0
    budget = 0.5

    deviations: Tensor

    def __init__(self, point: TapPoint, deviations: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.point = point
        self.values = nn.Parameter(0.05 * torch.randn(point.channels, generator=generator))
        self.register_buffer("deviations", deviations)

    def shift(self) -> Tensor:
        """What is added to the feature map of an image, broadcast over its places."""
        shape = {"nchw": (-1, 1, 1), "nhwc": (1, 1, -1), "tokens": (1, -1)}[self.point.layout]
        return (self.values * self.deviations).view(shape)

    def size(self) -> Tensor:
        return root_mean_square(self.values)

    @torch.no_grad()
    def cut(self) -> None:
        """Scales it."""
        self.values.copy_(within(self.values, self.budget))


@contextmanager
def _shifted(network: nn.Module, point: TapPoint, shifts: Tensor) -> Iterator[None]:
    """Within the block the features of each image are moved.

    Args:
        shifts: One an image, broadcast over its places.
    """

    def move(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
        return output + shifts

    handle = unwrapped(network).get_submodule(point.module).register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def logits_of(network: nn.Module, changes: Sequence[Change], images: Sequence[Tensor]) -> Tensor:
    """What a network makes of changed images, in one pass; [sum of B, classes].

    Args:
        changes: Of one family.
        images: Those of each change, [B, C, H, W], in [0, 1].
    """
    pairs = list(zip(changes, images, strict=True))
    changed = torch.cat([change.changed(some) for change, some in pairs])
    shifts = [
        change.shift().expand(len(some), *[-1] * change.shift().dim())
        for change, some in pairs
        if isinstance(change, FeatureShift)
    ]
    point = next((change.point for change in changes if isinstance(change, FeatureShift)), None)
    block = nullcontext() if point is None else _shifted(network, point, torch.cat(shifts))
    with block:
        logits: Tensor = network(changed)
    return logits
