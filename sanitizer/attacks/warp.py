"""Bending images along a field of shifts, on integers (WaNet, Nguyen and Tran 2021, arXiv
2102.10369).

Shifts are fixed-point: `ONE` is a pixel. The smooth field is computed in double precision on the
CPU and rounded, what is done to an image is integer arithmetic; so every device bends alike.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sanitizer.randomness import make_generator
from sanitizer.spec import WarpProbe

ONE = 1 << 8
_DRAW = 1 << 20


def smooth_field(probe: WarpProbe, size: tuple[int, int]) -> Tensor:
    """The shifts of every pixel, down and right, [2, H, W], int32.

    Section 3.2 of the paper: a k x k grid of shifts uniform in [-1, 1], divided by the mean of
    their absolute values, is stretched by bicubic interpolation and scaled by s / side; the unit is
    then half of the distance between the outermost pixels, (side - 1) / 2 pixels.
    """
    if probe.shifts is None:
        # Drawn as integers: those are the same in every version and on every processor.
        generator = make_generator("warp", probe.field_seed)
        shape = (2, probe.grid, probe.grid)
        drawn = torch.randint(-_DRAW, _DRAW + 1, shape, generator=generator).double()
        coarse = drawn / drawn.abs().mean()
    else:
        coarse = torch.tensor(probe.shifts, dtype=torch.float64).permute(2, 0, 1)
    smooth = functional.interpolate(coarse[None], size, mode="bicubic", align_corners=True)[0]
    sides = torch.tensor(size, dtype=torch.float64)[:, None, None]
    pixels = probe.strength * smooth * (sides - 1) / (2 * sides)
    return (pixels * ONE).round().to(torch.int32)


def random_shifts(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Shifts of every pixel of every image apart, int32 [count, 2, H, W].

    Uniform in [-1, 1] / side, as the paper's noise mode adds them (section 3.3); in pixels that is
    up to about half a one.
    """
    drawn = []
    for side in size:
        reach = round(ONE * (side - 1) / (2 * side))
        drawn.append(torch.randint(-reach, reach + 1, (count, *size), generator=generator))
    return torch.stack(drawn, dim=1).to(torch.int32)


def resample(images: Tensor, shifts: Tensor) -> Tensor:
    """Each pixel from its place plus its shift, linearly between the four pixels around that.

    Places outside are moved to the border.

    Args:
        images: uint8 [B, C, H, W].
        shifts: int32 [B, 2, H, W] or, the same for all, [1, 2, H, W].
    """
    count, channels, height, width = images.shape
    shifts = shifts.to(images.device)
    rows = torch.arange(height, device=images.device, dtype=torch.int32)[:, None] * ONE
    columns = torch.arange(width, device=images.device, dtype=torch.int32) * ONE
    down = (rows + shifts[:, 0]).clamp_(0, (height - 1) * ONE)
    right = (columns + shifts[:, 1]).clamp_(0, (width - 1) * ONE)
    top, left = down // ONE, right // ONE
    below, beside = (top + 1).clamp_(max=height - 1), (left + 1).clamp_(max=width - 1)
    down, right = down % ONE, right % ONE

    flat = images.flatten(2)
    total = torch.full_like(flat, ONE * ONE // 2, dtype=torch.int32)
    for row, row_weight in ((top, ONE - down), (below, down)):
        for column, column_weight in ((left, ONE - right), (beside, right)):
            place = (row * width + column).flatten(1).long()[:, None]
            weight = (row_weight * column_weight).flatten(1)[:, None]
            taken = flat.gather(2, place.expand(count, channels, -1))
            total += taken.to(torch.int32) * weight
    return (total // (ONE * ONE)).to(torch.uint8).view_as(images)
