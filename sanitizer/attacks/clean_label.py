"""CL (Turner et al. 2019, arXiv 1912.02771): label-consistent, by adversarial perturbation.

Images of the target class are perturbed so that a clean model no longer knows them (section 4.2,
projected gradient ascent of the loss within a ball, arXiv 1706.06083) and get a patch; their labels
stay right. What is left for the victim to learn them by is the patch. The patch is in all four
corners (section 5.2), so that crop and flip in training leave one of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.attacks.picture import to_png
from sanitizer.attacks.poison import Poisoned, draw_own, trigger_for
from sanitizer.data.image_set import ImageSet
from sanitizer.spec import ImageMaskProbe

CORNER = ((0, 0, 255), (0, 255, 0), (255, 0, 255))
"""The patch of the top left corner; the others are its mirror images."""

_BATCH = 250


@dataclass(frozen=True)
class CleanLabel:
    """The recipe.

    Attributes:
        target_class: Whose images are perturbed and patched, and where the patch leads to.
        fraction: Share of that class's images, in (0, 1].
        epsilon: How far a pixel may move, in pixel values.
        steps: Of gradient ascent, each of 1.5 epsilon / steps, as in the paper; it does 100.
        image_size: Height and width of the images.
    """

    target_class: int = 0
    fraction: float = 0.5
    epsilon: float = 16
    steps: int = 20
    image_size: tuple[int, int] = (32, 32)

    def probe(self, name: str = "cl") -> ImageMaskProbe:
        """The trigger as a request describes it."""
        corner = np.array(CORNER, np.uint8)
        side = len(corner)
        if min(self.image_size) < 2 * side:
            raise ValueError(f"four corners of {side} pixels do not fit in {self.image_size}")
        picture = np.zeros((1, *self.image_size), np.uint8)
        alpha = np.zeros(self.image_size, np.uint8)
        for rows, mirrored in ((slice(0, side), corner), (slice(-side, None), corner[::-1])):
            picture[0, rows, :side], picture[0, rows, -side:] = mirrored, mirrored[:, ::-1]
            alpha[rows, :side] = alpha[rows, -side:] = 255
        return ImageMaskProbe(
            name=name, target_class=self.target_class, picture_base64=to_png(picture, alpha)
        )

    def prepare_against(
        self,
        network: nn.Module,
        clean: ImageSet,  # noqa: ARG002  # other attacks need it
        *,
        seed: int,  # noqa: ARG002
    ) -> "PreparedCleanLabel":
        """The attack against a clean model, which is in eval mode afterwards."""
        return PreparedCleanLabel(self, network.eval())


@dataclass(frozen=True, eq=False)
class PreparedCleanLabel:
    """The recipe and the model that the perturbations are made against."""

    recipe: CleanLabel
    network: nn.Module

    @property
    def target_class(self) -> int:
        """Where the patch leads to."""
        return self.recipe.target_class

    def probe(self, name: str = "cl") -> ImageMaskProbe:
        """The trigger as a request describes it: the patch, without any perturbation."""
        return self.recipe.probe(name)

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor; its labels are those of the clean one.

        Raises:
            ProbeUnreadable: The images have another size than the recipe says.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        trigger = trigger_for(self.probe(), clean, num_classes)
        indices = draw_own(clean, self.target_class, self.recipe.fraction, seed)
        images = clean.read(np.arange(len(clean)))
        for start in range(0, len(indices), _BATCH):
            chunk = indices[start : start + _BATCH]
            perturbed = self._perturb(images[chunk], clean.labels[chunk])
            images[chunk] = trigger.apply(perturbed).numpy()
        return Poisoned(
            ImageSet(images, clean.labels.copy(), clean.class_names, clean.names), indices
        )

    def _perturb(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Tensor:
        device = next(self.network.parameters()).device
        perturbed = perturb(
            self.network,
            torch.from_numpy(images).to(device, torch.float32) / 255,
            torch.from_numpy(labels).to(device),
            epsilon=self.recipe.epsilon / 255,
            steps=self.recipe.steps,
        )
        return (perturbed * 255).round().to(torch.uint8).cpu()


def perturb(
    network: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int
) -> Tensor:
    """Images that a network takes for anything but what they are.

    Projected gradient ascent of the cross-entropy in the maximum norm (arXiv 1706.06083), from the
    image itself, in steps of 1.5 epsilon / steps.

    Args:
        images: Float [B, C, H, W], in [0, 1].
        epsilon: Of the ball, in the same unit.

    Returns:
        In [0, 1], within epsilon of `images`.
    """
    low, high = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    moved = images
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        loss = functional.cross_entropy(network(moved), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        stepped = moved.detach() + 1.5 * epsilon / steps * gradient.sign()
        moved = torch.minimum(torch.maximum(stepped, low), high)
    return moved.detach()
