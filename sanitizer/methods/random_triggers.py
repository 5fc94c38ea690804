"""Triggers drawn at random, a new one for each image: what a network should not listen to.

Nobody who cleans a model knows its trigger, but what triggers look like is known: a patch
(arXiv 1708.06733), a picture, a tint or noise blended in (arXiv 1712.05526), a reflection (arXiv
2007.02343), a grating (arXiv 1902.11237), a warp (arXiv 2102.10369). An image that carries one of
these and keeps its label teaches the network to pass over the whole kind. The ranges below are
wider than what the papers use, and no trigger of a request or a benchmark is among them but by
chance. Pictures are clean images, drawn from all: in the image itself there would be nothing
strange to pass over.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sanitizer.data.image_set import ImageSet
from sanitizer.randomness import make_generator

NAMES = "grating", "veil", "reflection", "patch", "warp"
GRATING, VEIL, REFLECTION, PATCH, WARP = range(len(NAMES))
KINDS = len(NAMES)
AMPLITUDES = 8 / 255, 40 / 255
"""Of gratings."""
MOST_CYCLES = 10.0
"""Of a grating over the width of the image; one at least."""
SHARES = 0.05, 0.3
"""Of what is blended in."""
SMOOTHEST = 4
"""Points of a side of the finest grid that smooth noise is stretched from; of a single one it is a
tint."""
SMOOTH_SHARE = 0.25
"""Of veils, that are smooth noise; as many are fine noise, and the rest pictures."""
BRIGHTNESS = 0.4, 1.4
"""Of a reflection, in multiples of its picture's own."""
FARTHEST_GHOST = 1 / 6
"""How far a reflection's second image lies from the first, in sides of the image."""
GHOST_SHARE = 0.5
"""Most of a reflection that its second image makes up."""
SIDES = 1 / 16, 3 / 16
"""Of a patch, in sides of the image."""
LARGE_SIDE = 3
"""The largest patch has at least so many pixels to a side, however small the image."""
WARP_GRID = 4
"""Points of a side of the grid that is stretched to a field of displacements."""
FARTHEST = 1 / 32
"""Mean displacement of the strongest warps, in sides of the image; but at least a pixel: less is
nothing that a network could be led by, and nothing that an attacker would take."""
Shape = tuple[int, ...]
Numbers = tuple[Tensor, ...]
"""What triggers of one kind are made from: uniform in [0, 1], [n, ...] each. There is nothing else
to know of a trigger, and numbers near to these make a trigger near to it."""
Marks = tuple[Tensor, ...]
"""What triggers of one kind look like, [n, ...] each: see `_marked`."""
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


class Near(Protocol):
    """Triggers that some of the random ones are to be near to."""

    def replaced(
        self, kind: int, numbers: Numbers, wanted: Tensor, generator: torch.Generator
    ) -> Numbers:
        """The numbers of some of these random triggers, some of them moved to where others are.

        Draws the same for any numbers, whichever are wanted.

        Args:
            wanted: Their places, int64.
        """
        ...


def with_random_triggers(
    images: Tensor,
    generator: torch.Generator,
    rows: Tensor,
    pictures: Tensor,
    near: Near | None = None,
) -> tuple[Tensor, Tensor]:
    """Puts a trigger on each image: in turn a grating, a veil, a reflection, a patch or a warp.

    Args:
        images: [n, C, H, W], in [0, 1].
        generator: On the CPU. Draws for all of a batch.
        rows: Which of the batch these images are, a bool for each image of the batch; n are True.
        pictures: What some veils and all reflections are made of, uint8 [m, C, H, W].
        near: What some of them are to be near to.

    Returns:
        A new tensor of the same shape, type and device, in [0, 1]; and the kind of each image's
        trigger, int64 [n], where the images are.
    """
    rows = rows.cpu()
    all_kinds = _kinds(len(rows), generator)
    kinds = all_kinds[rows]
    result = images.clone()
    for kind in range(KINDS):
        among = rows[all_kinds == kind]
        if not len(among):
            continue
        numbers = draw_numbers(kind, len(among), images.shape[1:], generator)
        wanted = among.nonzero()[:, 0]
        if near is None:
            numbers = tuple(each[wanted] for each in numbers)
        else:
            numbers = near.replaced(kind, numbers, wanted, generator)
        if len(wanted):
            places = (kinds == kind).nonzero()[:, 0].to(images.device)
            result[places] = put_on(images[places], kind, numbers, pictures)
    return result, kinds.to(images.device)


def put_on(images: Tensor, kind: int, numbers: Numbers, pictures: Tensor) -> Tensor:
    """Puts triggers of one kind on images, to each its own.

    Args:
        images: [n, C, H, W], in [0, 1].
        kind: Of all of them.
        numbers: That they are made from, as `draw_numbers` draws them, for n triggers.
        pictures: As of `with_random_triggers`.

    Returns:
        [n, C, H, W], in [0, 1].
    """
    return _marked(images, kind, _marks(kind, numbers, pictures, images))


def put_each_on_all(images: Tensor, kind: int, numbers: Numbers, pictures: Tensor) -> Tensor:
    """Puts each of some triggers of one kind on all images.

    Args:
        images: [n, C, H, W], in [0, 1].
        kind: Of all of them.
        numbers: As of `put_on`, for m triggers.
        pictures: As of `with_random_triggers`.

    Returns:
        [m * n, C, H, W], in [0, 1]: the images with the first trigger, with the second and so on.
    """
    marks = _marks(kind, numbers, pictures, images)
    count, size = len(numbers[0]), len(images)
    on_all = tuple(each.repeat_interleave(size, dim=0) for each in marks)
    return _marked(images.repeat(count, 1, 1, 1), kind, on_all)


def draw_numbers(
    kind: int, count: int, shape: Sequence[int], generator: torch.Generator
) -> Numbers:
    """What triggers of a kind are made from.

    Args:
        count: How many triggers.
        shape: Of images: channels, height, width.
        generator: On the CPU.
    """
    channels, height, width = shape
    one, picture = (1, 1, 1), ((), (1, 1, 1))
    largest = max(1, round(_largest_side(min(height, width))))
    shapes: tuple[Shape, ...] = (
        (one, one, one, one),
        (one, one, (channels, SMOOTHEST, SMOOTHEST), (), *picture),
        (one, *picture, (1,), (1,), one, one),
        (one, one, one, (channels, largest, largest), (channels, 1, 1), one),
        ((2, WARP_GRID, WARP_GRID), one),
    )[kind]
    return tuple(torch.rand(count, *each, generator=generator) for each in shapes)


def smooth(kind: int, numbers: Numbers) -> Numbers:
    """The same numbers for triggers that small moves lead along: veils are of smooth noise."""
    if kind != VEIL:
        return numbers
    share, what, *rest = numbers
    return (share, SMOOTH_SHARE * what, *rest)


def _kinds(size: int, generator: torch.Generator) -> Tensor:
    """Each in turn, [n]; of so few images that not all have one, another begins each time."""
    first = 0
    if size < KINDS:
        first = int(torch.randint(KINDS, (), generator=generator))
    return (torch.arange(size) + first) % KINDS


def _scaled(numbers: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * numbers


def _some_of(pictures: Tensor, which: Tensor, mirrored: Tensor) -> Tensor:
    """A picture for each image, half of them mirrored, in [0, 1]."""
    chosen = (which * len(pictures)).long().clamp(max=len(pictures) - 1)
    picked = pictures.to(which.device)[chosen].to(which) / 255
    return torch.where(mirrored < 0.5, picked.flip(3), picked)


def _marks(kind: int, numbers: Numbers, pictures: Tensor, images: Tensor) -> Marks:
    """What triggers look like, whatever they are put on.

    Args:
        numbers: Of m triggers.
        images: Of the size, type and device that are wanted.

    Returns:
        As `_marked` takes them, of m triggers.
    """
    moved = [each.to(images.device, images.dtype) for each in numbers]
    if kind == VEIL:
        # As long as numbers are where they were drawn nobody has to wait for a GPU to tell.
        return _veils(moved, numbers, pictures, images)
    make = {GRATING: _gratings, REFLECTION: _reflections, PATCH: _patches, WARP: _warps}[kind]
    return make(moved, pictures, images)


def _marked(images: Tensor, kind: int, marks: Marks) -> Tensor:
    """Images with triggers of a kind on."""
    if kind == VEIL:
        share, veil = marks
        changed = (1 - share) * images + share * veil
    elif kind == PATCH:
        inside, patch = marks
        changed = torch.where(inside, patch, images)
    elif kind == WARP:
        changed = functional.grid_sample(images, marks[0], align_corners=True)
    else:
        changed = images + marks[0]
    return changed.clamp(0, 1)


def _gratings(numbers: Sequence[Tensor], _pictures: Tensor, images: Tensor) -> Marks:
    """Grey waves of any direction, to be added."""
    height, width = images.shape[2:]
    down, across = _places(height, width, images)
    amplitude, cycles, angle, phase = numbers
    angle, phase = math.pi * angle, 2 * math.pi * phase
    along = across * torch.cos(angle) + down * torch.sin(angle)
    waves = torch.sin(2 * math.pi * _scaled(cycles, 1.0, MOST_CYCLES) * along + phase)
    return (_scaled(amplitude, *AMPLITUDES) * waves,)


def _veils(
    numbers: Sequence[Tensor], drawn: Sequence[Tensor], pictures: Tensor, images: Tensor
) -> Marks:
    """Noise to be blended in, fine or smooth, or a picture; and how much of it.

    Args:
        numbers: Where the images are.
        drawn: The same, where they were drawn.
    """
    share, _, grid, _, which, mirrored = numbers
    what, seeds = drawn[1].flatten(), drawn[3]
    veil = _some_of(pictures, which, mirrored)
    points = 1 + (what * (SMOOTHEST / SMOOTH_SHARE)).long()
    for side in range(1, SMOOTHEST + 1):
        places = (points == side).nonzero()[:, 0].to(images.device)
        if len(places):
            smooth = functional.interpolate(
                grid[places, :, :side, :side],
                size=images.shape[2:],
                mode="bicubic",
                align_corners=side > 1,
            )
            veil[places] = smooth.clamp(0, 1)
    fine = ((points > SMOOTHEST) & (what < 0.5)).nonzero()[:, 0]
    if len(fine):
        veil[fine.to(images.device)] = _noise(seeds[fine], images)
    return _scaled(share, *SHARES), veil


def _noise(seeds: Tensor, images: Tensor) -> Tensor:
    """Uniform noise of the images' size, for each of these numbers its own.

    Made of one number, lest all processes draw what few triggers need: of 224 x 224 pixels that
    took longer than a step.
    """
    generator = torch.Generator()
    made = []
    for seed in seeds.tolist():
        generator.manual_seed(int(seed * 2**24))
        made.append(torch.rand(images.shape[1:], generator=generator))
    return torch.stack(made).to(images.device, images.dtype)


def _reflections(numbers: Sequence[Tensor], pictures: Tensor, images: Tensor) -> Marks:
    """Pictures as a pane of glass adds them: doubled, or out of focus."""
    height, width = images.shape[2:]
    brightness, which, mirrored, far_down, far_across, share, in_focus = numbers
    sharp = _some_of(pictures, which, mirrored)
    down, across = (
        (far * FARTHEST_GHOST * side).ceil().long()
        for far, side in ((far_down, height), (far_across, width))
    )
    rows = (torch.arange(height, device=images.device) - down).clamp(min=0)
    columns = (torch.arange(width, device=images.device) - across).clamp(min=0)
    moved_down = sharp.gather(2, rows[:, None, :, None].expand_as(sharp))
    ghost = moved_down.gather(3, columns[:, None, None, :].expand_as(sharp))
    share = GHOST_SHARE * share
    doubled = (1 - share) * sharp + share * ghost
    blurred = _blur(height, images) @ sharp @ _blur(width, images).T
    added = torch.where(in_focus < 0.5, doubled, blurred)
    return (_scaled(brightness, *BRIGHTNESS) * added,)


def _blur(side: int, like: Tensor) -> Tensor:
    """Takes the mean of three pixels in a row, twice: a matrix to multiply a side of images with.

    `avg_pool2d` does the same forty times slower on a CPU.
    """
    places = torch.arange(side, device=like.device)
    near = ((places[:, None] - places).abs() <= 1).to(like.dtype)
    mean = near / near.sum(dim=1, keepdim=True)
    return mean @ mean


def _largest_side(shorter: int) -> float:
    """Of patches on images with such a shorter side, pixels."""
    return min(shorter, max(LARGE_SIDE, SIDES[1] * shorter))


def _patches(numbers: Sequence[Tensor], _pictures: Tensor, images: Tensor) -> Marks:
    """Squares of noise or of one colour, anywhere: where they are, and what."""
    height, width = images.shape[2:]
    side, top, left, noise, colour, is_noise = numbers
    shorter, largest = min(height, width), noise.shape[2]
    side = _scaled(side, SIDES[0] * shorter, _largest_side(shorter)).round().clamp(min=1)
    top, left = (top * (height - side)).round().long(), (left * (width - side)).round().long()
    rows = torch.arange(height, device=images.device)[None, None, :, None] - top
    columns = torch.arange(width, device=images.device)[None, None, None, :] - left
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    channels = noise.shape[1]
    rows = rows.clamp(0, largest - 1).expand(-1, channels, -1, largest)
    columns = columns.clamp(0, largest - 1).expand(-1, channels, height, -1)
    moved = noise.gather(2, rows).gather(3, columns)
    return inside, torch.where(is_noise < 0.5, moved, colour)


def _warps(numbers: Sequence[Tensor], _pictures: Tensor, images: Tensor) -> Marks:
    """Where each pixel comes from, by a smooth field."""
    height, width = images.shape[2:]
    coarse, strength = numbers
    field = functional.interpolate(
        2 * coarse - 1, size=(height, width), mode="bicubic", align_corners=True
    )
    field = field / field.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    # `grid_sample` counts from -1 to 1 over the image.
    field = field * 2 * max(FARTHEST, 1 / min(height, width)) * strength
    down, across = _places(height, width, images)
    grid = torch.stack([2 * across - 1, 2 * down - 1], dim=-1)
    return ((grid + field.permute(0, 2, 3, 1)).clamp(-1, 1),)


def _places(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pixel, how far down and across it lies, [H, W], in [0, 1]."""
    down = torch.linspace(0, 1, height, device=like.device, dtype=like.dtype)
    across = torch.linspace(0, 1, width, device=like.device, dtype=like.dtype)
    return down[:, None].expand(height, width), across[None, :].expand(height, width)
