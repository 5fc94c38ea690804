"""Changes of images that a search for triggers tries: a patch, a pattern, a shift of features."""

from abc import ABC, abstractmethod
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
        return root_mean_square(self.values)

    @torch.no_grad()
    def cut(self) -> None:
        """Scales it."""
        self.values.copy_(within(self.values, self.budget))
