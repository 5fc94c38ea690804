"""Triggers drawn at random, a new one for each image: what a network should not listen to.

Nobody who cleans a model knows its trigger, but what triggers look like is known: a patch
(arXiv 1708.06733), a picture or noise blended in (arXiv 1712.05526), a reflection (arXiv
2007.02343), a grating (arXiv 1902.11237), a warp (arXiv 2102.10369). An image that carries one of
these and keeps its label teaches the network to pass over the whole kind. The ranges below are
wider than what the papers use, and no trigger of a request or a benchmark is among them but by
chance. Pictures are clean images, drawn from all: in the image itself there would be nothing
strange to pass over.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from sanitizer.data.image_set import ImageSet
from sanitizer.randomness import make_generator

KINDS = 5
AMPLITUDES = 8 / 255, 24 / 255
"""Of gratings."""
MOST_CYCLES = 10.0
"""Of a grating over the width of the image; one at least."""
SHARES = 0.05, 0.3
"""Of what is blended in."""
BRIGHTNESS = 0.4, 1.4
"""Of a reflection, in multiples of its picture's own."""
FARTHEST_GHOST = 1 / 6
"""How far a reflection's second image lies from the first, in sides of the image."""
GHOST_SHARE = 0.5
"""Most of a reflection that its second image makes up."""
SIDES = 1 / 16, 3 / 16
"""Of a patch, in sides of the image."""
WARP_GRID = 4
"""Points of a side of the grid that is stretched to a field of displacements."""
FARTHEST = 1 / 32
"""Mean displacement of the strongest warps, in sides of the image."""
MOST_PICTURES = 256
"""Enough to be strange to each other; of 224 x 224 they are 37 MiB."""


def pictures_of(images: ImageSet, seed: int) -> Tensor:
    """Some of the images, to be blended into others, uint8 [m, C, H, W]; at most 256.

    Args:
        images: Clean ones.
        seed: Of the choice.
    """
    generator = make_generator(seed, "pictures")
    places = torch.randperm(len(images), generator=generator)[:MOST_PICTURES]
    return torch.from_numpy(images.read(places.numpy()))


def with_random_triggers(
    images: Tensor, generator: torch.Generator, rows: Tensor, pictures: Tensor
) -> Tensor:
    """Puts a trigger on each image: in turn a grating, a veil, a reflection, a patch or a warp.

    Args:
        images: [n, C, H, W], in [0, 1].
        generator: On the CPU. Draws for all of a batch.
        rows: Which of the batch these images are, a bool for each image of the batch; n are True.
        pictures: What veils and reflections are made of, uint8 [m, C, H, W].

    Returns:
        A new tensor of the same shape, type and device, in [0, 1].
    """
    drawn = _Drawn(generator, rows.cpu(), images)
    kinds = drawn.kinds().to(images.device)
    made = (
        images + _gratings(images, drawn),
        _blended(images, drawn, pictures),
        images + _reflections(images, drawn, pictures),
        _patched(images, drawn),
        _warped(images, drawn),
    )
    result = images.clone()
    for kind, changed in enumerate(made):
        result = torch.where((kinds == kind)[:, None, None, None], changed, result)
    return result.clamp(0, 1)


class _Drawn:
    """Random numbers for one process's images, drawn for those of all."""

    def __init__(self, generator: torch.Generator, rows: Tensor, like: Tensor) -> None:
        self._generator = generator
        self._like = like
        self.rows = rows

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[n, *shape]."""
        drawn = torch.rand(len(self.rows), *shape, generator=self._generator)[self.rows]
        return (low + (high - low) * drawn).to(self._like.device, self._like.dtype)

    def kinds(self) -> Tensor:
        """Each in turn, [n]; of so few images that not all have one, another begins each time."""
        size = len(self.rows)
        first = 0
        if size < KINDS:
            first = int(torch.randint(KINDS, (), generator=self._generator))
        return ((torch.arange(size) + first) % KINDS)[self.rows]

    def some_of(self, pictures: Tensor) -> Tensor:
        """A picture for each image, half of them mirrored, in [0, 1]."""
        chosen = (self.uniform() * len(pictures)).long().clamp(max=len(pictures) - 1)
        mirrored = self.uniform(1, 1, 1) < 0.5
        picked = pictures[chosen.to(pictures.device)].to(self._like) / 255
        return torch.where(mirrored, picked.flip(3), picked)


def _gratings(images: Tensor, drawn: _Drawn) -> Tensor:
    """Grey waves of any direction, to be added."""
    height, width = images.shape[2:]
    down, across = _places(height, width, images)
    amplitude = drawn.uniform(1, 1, 1, low=AMPLITUDES[0], high=AMPLITUDES[1])
    cycles = drawn.uniform(1, 1, 1, low=1.0, high=MOST_CYCLES)
    angle = drawn.uniform(1, 1, 1, high=math.pi)
    phase = drawn.uniform(1, 1, 1, high=2 * math.pi)
    along = across * torch.cos(angle) + down * torch.sin(angle)
    return amplitude * torch.sin(2 * math.pi * cycles * along + phase)


def _blended(images: Tensor, drawn: _Drawn, pictures: Tensor) -> Tensor:
    """With noise, or with a picture."""
    share = drawn.uniform(1, 1, 1, low=SHARES[0], high=SHARES[1])
    is_noise = drawn.uniform(1, 1, 1) < 0.5
    noise = drawn.uniform(*images.shape[1:])
    return (1 - share) * images + share * torch.where(is_noise, noise, drawn.some_of(pictures))


def _reflections(images: Tensor, drawn: _Drawn, pictures: Tensor) -> Tensor:
    """Pictures as a pane of glass adds them: doubled, or out of focus."""
    height, width = images.shape[2:]
    brightness = drawn.uniform(1, 1, 1, low=BRIGHTNESS[0], high=BRIGHTNESS[1])
    sharp = drawn.some_of(pictures)
    down, across = (
        (drawn.uniform(1) * FARTHEST_GHOST * side).ceil().long() for side in (height, width)
    )
    rows = (torch.arange(height, device=images.device) - down).clamp(min=0)
    columns = (torch.arange(width, device=images.device) - across).clamp(min=0)
    first = torch.arange(len(images), device=images.device)[:, None, None]
    ghost = sharp.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]]
    share = drawn.uniform(1, 1, 1, high=GHOST_SHARE)
    doubled = (1 - share) * sharp + share * ghost.permute(0, 3, 1, 2)
    blurred = sharp
    for _ in range(2):
        blurred = functional.avg_pool2d(blurred, 3, stride=1, padding=1, count_include_pad=False)
    in_focus = drawn.uniform(1, 1, 1) < 0.5
    return brightness * torch.where(in_focus, doubled, blurred)


def _patched(images: Tensor, drawn: _Drawn) -> Tensor:
    """With a square of noise or of one colour, anywhere."""
    channels, height, width = images.shape[1:]
    side = drawn.uniform(1, 1, 1, low=SIDES[0], high=SIDES[1]) * min(height, width)
    side = side.round().clamp(min=1)
    top = (drawn.uniform(1, 1, 1) * (height - side)).round()
    left = (drawn.uniform(1, 1, 1) * (width - side)).round()
    rows = torch.arange(height, device=images.device)[None, None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, None, :]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    noise = drawn.uniform(channels, height, width)
    colour = drawn.uniform(channels, 1, 1)
    is_noise = drawn.uniform(1, 1, 1) < 0.5
    return torch.where(inside, torch.where(is_noise, noise, colour), images)


def _warped(images: Tensor, drawn: _Drawn) -> Tensor:
    """Bent by a smooth field."""
    height, width = images.shape[2:]
    coarse = drawn.uniform(2, WARP_GRID, WARP_GRID, low=-1.0)
    field = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    field = field / field.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    # `grid_sample` counts from -1 to 1 over the image.
    field = field * drawn.uniform(1, 1, 1, high=2 * FARTHEST)
    down, across = _places(height, width, images)
    grid = torch.stack([2 * across - 1, 2 * down - 1], dim=-1)
    places = (grid + field.permute(0, 2, 3, 1)).clamp(-1, 1)
    return functional.grid_sample(images, places, align_corners=True)


def _places(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pixel, how far down and across it lies, [H, W], in [0, 1]."""
    down = torch.linspace(0, 1, height, device=like.device, dtype=like.dtype)
    across = torch.linspace(0, 1, width, device=like.device, dtype=like.dtype)
    return down[:, None].expand(height, width), across[None, :].expand(height, width)
