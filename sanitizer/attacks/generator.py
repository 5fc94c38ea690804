"""A small network that makes a trigger for each image, on integers (input-aware dynamic backdoor,
Nguyen and Tran 2020, arXiv 2010.08138).

Its shape is fixed, a request brings its weights. Two halves of five 3 x 3 convolutions each look at
an image: one gives a pattern, the other says where how much of it is put on.

Weights and features are multiples of 1 / `ONE`, and bounded. So a sum of their products has fewer
bits than a double precision number, and comes out exact in whatever order it is added up; what
follows are single operations that IEEE 754 rounds correctly. Every processor makes the same
trigger.
"""

import base64
import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from sanitizer.errors import ProbeUnreadable
from sanitizer.randomness import make_generator
from sanitizer.spec import InputAwareProbe

ONE = 1 << 12
"""Weights in a file are 16-bit integers; this is a weight of 1."""
MOST = 64
"""Features are cut off there. 144 products of 15 and 18 bits make a sum of at most 41 bits."""
WEIGHT_ONE = 1 << 16
"""A mask of 1, as integer."""

HALVES = ("mask", "pattern")
WIDTH = 16
GAIN = 8
"""How much steeper the mask's last step is than the pattern's: most of it is to be near 0 or 1."""

_PIXELS = 1 << 14
"""Of the images that go through at once: their features, unfolded, take about 25 MB."""


def shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file, by name, for images of so many channels."""
    found: dict[str, tuple[int, ...]] = {}
    for half in HALVES:
        widths = (channels, WIDTH, WIDTH, WIDTH, WIDTH // 2, 1 if half == "mask" else channels)
        for i, (came, left) in enumerate(pairwise(widths)):
            found[f"{half}.{i}.weight"] = (left, came, 3, 3)
            found[f"{half}.{i}.bias"] = (left,)
    return found


def draw_weights(channels: int, *seed_parts: int | str) -> dict[str, Tensor]:
    """Weights to start training from: normal with variance 2 / inputs; biases 0."""
    generator = make_generator(*seed_parts)
    return {
        name: torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        if len(shape) > 1
        else torch.zeros(shape)
        for name, shape in shapes(channels).items()
    }


def mask_of(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """How much of the pattern each pixel gets, [B, 1, H, W], in [0, 1].

    Args:
        weights: In the type of the images.
        images: [B, C, H, W], in [0, 1].
    """
    return _squash(GAIN * _convolve(weights, "mask", images * (255 / 256) - 0.5))


def pattern_of(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The pattern of each image, [B, C, H, W], in [0, 1]; arguments as `mask_of`."""
    return _squash(_convolve(weights, "pattern", images * (255 / 256) - 0.5))


class Generator:
    """Makes triggers and puts them on, on integers.

    Args:
        weights: int16, with names and shapes of `shapes`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: value.double() / ONE for name, value in weights.items()}

    def triggers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The pattern and the mask of each image, on the CPU.

        Args:
            images: uint8 [B, C, H, W].

        Returns:
            The pattern, uint8 [B, C, H, W], and the mask, int32 [B, 1, H, W]: 0 to `WEIGHT_ONE`.
        """
        size = max(1, _PIXELS // math.prod(images.shape[2:]))
        patterns, masks = [], []
        # One piece even of no images, so that there is something to put together.
        for piece in images.cpu().split(size):  # type: ignore[no-untyped-call]  # torch has no types for it
            centred = piece.double() / 256 - 0.5
            pattern = _squash(_convolve(self._weights, "pattern", centred, exact=True))
            mask = _squash(GAIN * _convolve(self._weights, "mask", centred, exact=True))
            patterns.append((pattern * 255 + 0.5).floor().to(torch.uint8))
            masks.append((mask * WEIGHT_ONE + 0.5).floor().to(torch.int32))
        return torch.cat(patterns), torch.cat(masks)

    def put_on(self, images: Tensor, sources: Tensor) -> Tensor:
        """New images, each with the trigger of the source at its place.

        Args:
            images: uint8 [B, C, H, W].
            sources: The same; the images themselves for a backdoor's trigger.
        """
        pattern, mask = (made.to(images.device) for made in self.triggers(sources))
        mixed = images.to(torch.int32) * (WEIGHT_ONE - mask) + pattern.to(torch.int32) * mask
        return ((mixed + WEIGHT_ONE // 2) >> 16).to(torch.uint8)


def pack(weights: Mapping[str, Tensor]) -> bytes:
    """Weights as a request carries them: safetensors of 16-bit integers, base64-encoded."""
    rounded = {
        name: (value.detach().cpu() * ONE).round().clamp(-(1 << 15), (1 << 15) - 1).to(torch.int16)
        for name, value in weights.items()
    }
    return base64.b64encode(save(rounded))


def read_generator(probe: InputAwareProbe, channels: int) -> Generator:
    """The generator of a probe, for images of so many channels.

    Raises:
        ProbeUnreadable: The file is no safetensors file, or its tensors have other names, shapes or
            types.
    """
    try:
        weights = load(probe.generator_base64)
    # The parser raises whatever the damaged bytes drive it to.
    except Exception as error:
        raise ProbeUnreadable(
            f"The generator of the probe {probe.name} is no safetensors file that can be read: "
            f"{error}.",
            probe=probe.name,
            reason=str(error),
        ) from error
    expected = shapes(channels)
    missing, unexpected = sorted(expected.keys() - weights), sorted(weights.keys() - expected)
    if missing or unexpected:
        raise ProbeUnreadable(
            f"The generator of the probe {probe.name} has {len(weights)} tensors; expected are "
            f"{len(expected)}, of which {len(missing)} are missing ({_some(missing)}), and "
            f"{len(unexpected)} others came ({_some(unexpected)}).",
            probe=probe.name,
            missing=missing,
            unexpected=unexpected,
        )
    for name, shape in expected.items():
        value = weights[name]
        if value.dtype != torch.int16 or tuple(value.shape) != shape:
            raise ProbeUnreadable(
                f"In the generator of the probe {probe.name} the tensor {name} is "
                f"{_described(value.dtype, value.shape)}; for a model whose input has {channels} "
                f"channel{'s' * (channels > 1)}, {_described(torch.int16, shape)} is expected.",
                probe=probe.name,
                tensor=name,
                received={"dtype": _name(value.dtype), "shape": list(value.shape)},
                expected={"dtype": _name(torch.int16), "shape": list(shape)},
            )
    return Generator(weights)


def _convolve(
    weights: Mapping[str, Tensor], half: str, images: Tensor, *, exact: bool = False
) -> Tensor:
    """What a half makes of images before the last step: at half size, at a fourth, and back.

    Args:
        images: In [-0.5, 0.5).
        exact: Whether features are rounded. That has no gradient, and in training they are not.
    """

    def convolved(features: Tensor, layer: int, stride: int = 1) -> Tensor:
        weight, bias = weights[f"{half}.{layer}.weight"], weights[f"{half}.{layer}.bias"]
        return functional.conv2d(features, weight, bias, stride=stride, padding=1)

    def cut(features: Tensor) -> Tensor:
        if exact:
            features = features.mul_(ONE).add_(0.5).floor_().div_(ONE)
        return features.clamp(0, MOST)

    halved = cut(convolved(images, 0, stride=2))
    features = cut(convolved(halved, 1, stride=2))
    features = cut(convolved(features, 2))
    features = cut(convolved(_doubled(features, halved), 3))
    return convolved(_doubled(features, images), 4)


def _doubled(features: Tensor, like: Tensor) -> Tensor:
    """Every pixel four times, cut to the size of another."""
    height, width = like.shape[2:]
    repeated = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return repeated[:, :, :height, :width]


def _squash(values: Tensor) -> Tensor:
    """Into (0, 1). Unlike a sigmoid, of operations alone that are rounded the same everywhere."""
    return values / (values * values + 1).sqrt() * 0.5 + 0.5


def _some(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _described(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{_name(dtype)} {list(shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
