"""Triggers: what a probe of the request does to an image.

All arithmetic is on integers, so that every device stamps the same pixels.
"""

import io
import math
from typing import Protocol, assert_never

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sanitizer.attacks.generator import read_generator
from sanitizer.attacks.warp import resample, smooth_field
from sanitizer.errors import ProbeOutsideImage, ProbeUnreadable, TargetClassOutOfRange
from sanitizer.randomness import make_generator
from sanitizer.spec import (
    BlendProbe,
    ImageMaskProbe,
    InputAwareProbe,
    PatchProbe,
    Probe,
    ReflectionProbe,
    SinusoidProbe,
    WarpProbe,
)

_ONE = 1 << 16
"""Mixing weights are fixed-point: this is 1. 255 times it fits in an int32."""

_MODES = {1: "L", 3: "RGB"}


class Trigger(Protocol):
    """Puts a backdoor's trigger on images."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    @property
    def target_class(self) -> int:
        """The class it is said to lead to."""
        ...

    def apply(self, images: Tensor) -> Tensor:
        """New images with the trigger on: uint8 [B, C, H, W], on the device they came on."""
        ...


def make_trigger(
    probe: Probe, *, input_size: tuple[int, int], channels: int, num_classes: int
) -> Trigger:
    """The trigger that a probe describes, for one model's input.

    Args:
        input_size: Height and width, pixels.
        channels: 1 or 3.
        num_classes: Outputs of the model.

    Raises:
        TargetClassOutOfRange: The model has no such class.
        ProbeOutsideImage: A patch does not lie within the image.
        ProbeUnreadable: A picture cannot be read, has another size or no alpha, a patch has
            colours that the model's input does not, or a generator has other tensors than it must.
    """
    if probe.target_class >= num_classes:
        raise TargetClassOutOfRange(
            f"The probe {probe.name} leads to class {probe.target_class}; the model has "
            f"{num_classes} classes, 0 to {num_classes - 1}.",
            probe=probe.name,
            target_class=probe.target_class,
            num_classes=num_classes,
        )
    match probe:
        case PatchProbe():
            return Patch(probe, input_size, channels)
        case BlendProbe():
            return _blend(probe, input_size, channels)
        case SinusoidProbe():
            return Sinusoid(probe, input_size)
        case ImageMaskProbe():
            return _image_mask(probe, input_size, channels)
        case WarpProbe():
            return Warp(probe, input_size)
        case ReflectionProbe():
            return Reflection(probe, input_size, channels)
        case InputAwareProbe():
            return InputAware(probe, channels)
    assert_never(probe)


class Patch:
    """Replaces a rectangle by fixed pixels."""

    def __init__(self, probe: PatchProbe, input_size: tuple[int, int], channels: int) -> None:
        self.name = probe.name
        self.target_class = probe.target_class
        pixels = torch.tensor(probe.pixels, dtype=torch.uint8)
        if pixels.ndim == 3:
            if channels != 3:
                raise ProbeUnreadable(
                    f"The probe {probe.name} has pixels of 3 colours, the model's input has "
                    f"{channels} channel. Give one value a pixel.",
                    probe=probe.name,
                    colors=3,
                    channels=channels,
                )
            pixels = pixels.permute(2, 0, 1)
        height, width = pixels.shape[-2:]
        self._top = _place(probe, "row", probe.row, height, input_size)
        self._left = _place(probe, "column", probe.column, width, input_size)
        self._pixels = pixels.contiguous()

    def apply(self, images: Tensor) -> Tensor:
        height, width = self._pixels.shape[-2:]
        triggered = images.clone()
        triggered[:, :, self._top : self._top + height, self._left : self._left + width] = (
            self._pixels.to(images.device)
        )
        return triggered


class Mix:
    """Mixes a picture into the image: (1 - weight) * image + weight * picture, rounded.

    Args:
        picture: uint8 [C, H, W].
        weight: In [0, 1], one for all or [H, W].
    """

    def __init__(self, probe: Probe, picture: Tensor, weight: Tensor) -> None:
        self.name = probe.name
        self.target_class = probe.target_class
        fixed = (weight.to(torch.float64) * _ONE).round().to(torch.int32)
        self._kept = _ONE - fixed
        self._added = picture.to(torch.int32) * fixed + _ONE // 2

    def apply(self, images: Tensor) -> Tensor:
        kept, added = self._kept.to(images.device), self._added.to(images.device)
        return ((images.to(torch.int32) * kept + added) >> 16).to(torch.uint8)


class Sinusoid:
    """Adds a wave that runs from left to right, the same on every row and channel."""

    def __init__(self, probe: SinusoidProbe, input_size: tuple[int, int]) -> None:
        self.name = probe.name
        self.target_class = probe.target_class
        columns = torch.arange(input_size[1], dtype=torch.float64)
        wave = probe.amplitude * torch.sin(2 * math.pi * columns * probe.frequency / input_size[1])
        self._wave = wave.round().to(torch.int16)
        if not self._wave.any():
            raise ProbeUnreadable(
                f"The probe {probe.name} changes no pixel of an image {input_size[1]} wide: with "
                f"amplitude {probe.amplitude:g} and frequency {probe.frequency:g} the wave rounds "
                "to 0 everywhere. Give a larger amplitude or another frequency.",
                probe=probe.name,
                amplitude=probe.amplitude,
                frequency=probe.frequency,
            )

    def apply(self, images: Tensor) -> Tensor:
        waved = images.to(torch.int16) + self._wave.to(images.device)
        return waved.clamp_(0, 255).to(torch.uint8)


class Warp:
    """Bends the image along a smooth field."""

    def __init__(self, probe: WarpProbe, input_size: tuple[int, int]) -> None:
        self.name = probe.name
        self.target_class = probe.target_class
        self._shifts = smooth_field(probe, input_size)
        if not self._shifts.any():
            raise ProbeUnreadable(
                f"The probe {probe.name} changes no pixel: with strength {probe.strength:g} every "
                "shift rounds to 0. Give a larger strength.",
                probe=probe.name,
                strength=probe.strength,
            )

    def apply(self, images: Tensor) -> Tensor:
        return resample(images, self._shifts[None])


class Reflection:
    """Adds one of a few pictures, in part; the image's own pixels say which."""

    def __init__(self, probe: ReflectionProbe, input_size: tuple[int, int], channels: int) -> None:
        self.name = probe.name
        self.target_class = probe.target_class
        pictures = [
            _pixels(_open_png(probe, encoded, input_size), channels, probe.name)
            for encoded in probe.pictures_base64
        ]
        fixed = round(probe.weight * _ONE)
        self._added = (torch.stack(pictures).to(torch.int32) * fixed + _ONE // 2) >> 16
        dark = [str(i) for i, added in enumerate(self._added) if not added.any()]
        if dark:
            raise ProbeUnreadable(
                f"Of the probe {probe.name} the picture {', '.join(dark)} (from 0) is black: it "
                f"would change no image at weight {probe.weight:g}. Give a brighter one.",
                probe=probe.name,
                pictures=[int(i) for i in dark],
            )

    def apply(self, images: Tensor) -> Tensor:
        # A function of the image alone, so that the batch it comes in never matters.
        chosen = images.flatten(1).sum(dim=1, dtype=torch.int64) % len(self._added)
        added = self._added.to(images.device)[chosen]
        return (images.to(torch.int32) + added).clamp_(max=255).to(torch.uint8)


class InputAware:
    """Puts on each image what a small network makes out of it."""

    def __init__(self, probe: InputAwareProbe, channels: int) -> None:
        self.name = probe.name
        self.target_class = probe.target_class
        self._generator = read_generator(probe, channels)

    def apply(self, images: Tensor) -> Tensor:
        return self._generator.put_on(images, images)


def _place(probe: PatchProbe, axis: str, start: int, size: int, input_size: tuple[int, int]) -> int:
    """Where the patch starts on an axis, counted from the top or left."""
    limit = input_size[0] if axis == "row" else input_size[1]
    first = start if start >= 0 else limit + start
    if first < 0 or first + size > limit:
        raise ProbeOutsideImage(
            f"The probe {probe.name} covers the {axis}s {first} to {first + size - 1}; the model's "
            f"input has {limit} {axis}s, 0 to {limit - 1} ({input_size[0]} x {input_size[1]} "
            "pixels).",
            probe=probe.name,
            axis=axis,
            first=first,
            last=first + size - 1,
            input_size=list(input_size),
        )
    return first


def _blend(probe: BlendProbe, input_size: tuple[int, int], channels: int) -> Mix:
    if probe.picture_base64 is None:
        generator = make_generator("blend", probe.noise_seed)
        shape = (channels, *input_size)
        picture = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    else:
        image = _open_png(probe, probe.picture_base64, input_size)
        picture = _pixels(image, channels, probe.name)
    return Mix(probe, picture, torch.tensor(probe.alpha))


def _image_mask(probe: ImageMaskProbe, input_size: tuple[int, int], channels: int) -> Mix:
    image = _open_png(probe, probe.picture_base64, input_size)
    if image.mode not in ("RGBA", "LA"):
        raise ProbeUnreadable(
            f"The picture of the probe {probe.name} has the mode {image.mode}, without the alpha "
            "channel that is the mask. Save it as an RGBA PNG.",
            probe=probe.name,
            mode=image.mode,
        )
    alpha = torch.from_numpy(np.array(image.getchannel("A")))
    if not alpha.any():
        raise ProbeUnreadable(
            f"The picture of the probe {probe.name} is transparent everywhere, so it would change "
            "no image. Alpha 255 is where it replaces the image.",
            probe=probe.name,
        )
    return Mix(probe, _pixels(image, channels, probe.name), alpha / 255)


def _open_png(
    probe: BlendProbe | ImageMaskProbe | ReflectionProbe,
    encoded: bytes,
    input_size: tuple[int, int],
) -> Image.Image:
    """The picture, fully decoded; its size is checked before any pixel is unpacked."""
    height, width = input_size
    try:
        image = Image.open(io.BytesIO(encoded), formats=["PNG"])
        if image.size != (width, height):
            raise ProbeUnreadable(
                f"The picture of the probe {probe.name} is {image.height} pixels high and "
                f"{image.width} wide, the model's input {height} high and {width} wide. Give a "
                "picture of that size.",
                probe=probe.name,
                picture_size=[image.height, image.width],
                input_size=list(input_size),
            )
        image.load()
    except ProbeUnreadable:
        raise
    # Pillow raises whatever the damaged bytes drive it to.
    except Exception as error:
        raise ProbeUnreadable(
            f"The picture of the probe {probe.name} is no PNG that can be read: {error}.",
            probe=probe.name,
            reason=str(error),
        ) from error
    return image


def _pixels(image: Image.Image, channels: int, name: str) -> Tensor:
    if channels not in _MODES:
        raise ProbeUnreadable(
            f"The probe {name} is a picture, and the model's input has {channels} channels; "
            "pictures have 1 or 3.",
            probe=name,
            channels=channels,
        )
    # Through RGBA, or Pillow warns that a palette's transparency is lost.
    opaque = image.convert("RGBA").convert(_MODES[channels])
    pixels = torch.from_numpy(np.array(opaque))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
