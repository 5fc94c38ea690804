"""Trojan (TrojanNN, Liu et al., NDSS 2018): a patch made for neurons of a clean model.

The paper picks neurons that are strongly tied to the layer before (the largest sum of absolute
weights, section IV.A) and changes the pixels of the patch, by gradient descent, until those neurons
reach a value far above their usual ones (algorithm 1). The model is then retrained with patched
images of the target's label. The paper's attacker has the model and no data; here the data is
poisoned with the patch and the victim trained from the start, as later comparisons do it.

Here a neuron is an output channel of a convolution, its value the mean over the map.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.attacks.poison import Poisoned, poison, trigger_for
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.randomness import make_generator
from sanitizer.spec import PatchProbe


@dataclass(frozen=True)
class Trojan:
    """The attack with its patch made.

    Attributes:
        target_class: Where the patch leads to.
        fraction: Share of the images of the other classes that are poisoned, in (0, 1].
        row: Top row of the patch; negative: from the bottom.
        column: Left column of the patch; negative: from the right.
        pixels: Rows of values 0 to 255 or of [red, green, blue].
    """

    target_class: int
    fraction: float
    row: int
    column: int
    pixels: tuple[tuple[int | tuple[int, ...], ...], ...]

    def probe(self, name: str = "trojan") -> PatchProbe:
        """The trigger as a request describes it."""
        return PatchProbe.model_validate(
            {
                "name": name,
                "target_class": self.target_class,
                "row": self.row,
                "column": self.column,
                "pixels": self.pixels,
            }
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor.

        Raises:
            ProbeOutsideImage: The patch does not lie within the images.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        trigger = trigger_for(self.probe(), clean, num_classes)
        return poison(clean, trigger, self.fraction, seed)


@dataclass(frozen=True)
class TrojanRecipe:
    """How the patch is made, and what is done with it.

    Attributes:
        target_class: Where the patch leads to.
        fraction: Share of the images of the other classes that are poisoned, in (0, 1].
        side: Of the square patch, pixels.
        margin: Between the patch and the bottom and right borders, pixels, so that a random crop
            in training leaves most of it in the image.
        layer: Path of the convolution whose output channels are the neurons; None: the last one.
        neurons: How many of them.
        reach: What they are to come to, in standard deviations over clean images above their mean.
        images: Clean images that carry the patch while it is made.
        steps: Of gradient descent.
        step_size: Of the first step, in pixel values; it falls to 0 in a straight line. Each pixel
            moves by the sign of its gradient.
    """

    target_class: int = 0
    fraction: float = 0.1
    side: int = 6
    margin: int = 2
    layer: str | None = None
    neurons: int = 2
    reach: float = 10
    images: int = 64
    steps: int = 100
    step_size: float = 16

    def prepare_against(self, network: nn.Module, clean: ImageSet, *, seed: int) -> Trojan:
        """Makes the patch against a clean model, which is in eval mode afterwards.

        Raises:
            NotEnoughImages: There is no clean image.
            ValueError: The network has no such convolution, or the patch does not fit.
        """
        if not len(clean):
            raise NotEnoughImages("A patch is made on clean images, and none came.", available=0)
        channels, height, width = clean.shape
        bottom, right = height - self.margin, width - self.margin
        if min(bottom, right) < self.side:
            raise ValueError(
                f"a patch of {self.side} pixels and a margin of {self.margin} do not fit images of "
                f"{height} x {width}"
            )
        network.eval()
        device = next(network.parameters()).device
        generator = make_generator(seed, "trojan")
        chosen = torch.randperm(len(clean), generator=generator)[: self.images].numpy()
        images = torch.from_numpy(clean.read(chosen)).to(device, torch.float32) / 255
        drawn = torch.rand(channels, self.side, self.side, generator=generator)
        patch = drawn.to(device)

        layer = find_convolution(network, self.layer)
        strongest = layer.weight.detach().abs().flatten(1).sum(dim=1)
        neurons = strongest.topk(min(self.neurons, len(strongest))).indices
        with _Values(network, layer) as values:
            with torch.no_grad():
                usual = values(images)[:, neurons]
            goal = usual.mean(dim=0) + self.reach * usual.std(dim=0, unbiased=False)
            for step in range(self.steps):
                patch.requires_grad_()
                marked = images.clone()
                marked[:, :, bottom - self.side : bottom, right - self.side : right] = patch
                short = functional.mse_loss(
                    values(marked)[:, neurons], goal.expand(len(images), -1)
                )
                (gradient,) = torch.autograd.grad(short, patch)
                length = self.step_size / 255 * (1 - step / self.steps)
                patch = (patch.detach() - length * gradient.sign()).clamp_(0, 1)
        pixels = (patch * 255).round().to(torch.uint8).cpu().numpy()
        return Trojan(
            self.target_class,
            self.fraction,
            row=-self.side - self.margin,
            column=-self.side - self.margin,
            pixels=_rows(pixels),
        )


def find_convolution(network: nn.Module, path: str | None) -> nn.Conv2d:
    """The convolution at a path; without one, the last that the network has.

    Raises:
        ValueError: There is none.
    """
    found = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    if not found or (path is not None and path not in found):
        raise ValueError(f"no convolution {path or ''}; there are {', '.join(found) or 'none'}")
    return found[path] if path is not None else list(found.values())[-1]


class _Values:
    """Mean output of each channel of a layer, [B, channels], as long as the context lasts."""

    def __init__(self, network: nn.Module, layer: nn.Conv2d) -> None:
        self._network = network
        self._layer = layer
        self._seen = torch.empty(0)

    def __enter__(self) -> "_Values":
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            self._seen = output.mean(dim=(2, 3))

        self._hook = self._layer.register_forward_hook(keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def __call__(self, images: Tensor) -> Tensor:
        self._network(images)
        return self._seen


def _rows(pixels: "np.typing.NDArray[np.uint8]") -> tuple[tuple[int | tuple[int, ...], ...], ...]:
    if len(pixels) == 1:
        return tuple(tuple(int(v) for v in row) for row in pixels[0])
    return tuple(
        tuple(tuple(int(v) for v in color) for color in row) for row in pixels.transpose(1, 2, 0)
    )
