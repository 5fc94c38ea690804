import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.nn import functional

from sanitizer.attacks.warp import ONE, random_shifts, resample, smooth_field
from sanitizer.randomness import make_generator
from sanitizer.spec import WarpProbe

SIZE = (9, 6)


def images_of(count: int = 4, size: tuple[int, int] = SIZE) -> torch.Tensor:
    generator = make_generator("images")
    return torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def constant(down: float, right: float, strength: float = 1) -> WarpProbe:
    return WarpProbe(target_class=0, strength=strength, shifts=(((down, right),) * 2,) * 2)


def bent_by_hand(image: NDArray[np.uint8], shifts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixel by pixel, in double precision."""
    _, height, width = image.shape
    result = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            y = min(max(row + shifts[0, row, column], 0), height - 1)
            x = min(max(column + shifts[1, row, column], 0), width - 1)
            top, left = math.floor(y), math.floor(x)
            below, beside = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            result[:, row, column] = (1 - dy) * (
                (1 - dx) * image[:, top, left] + dx * image[:, top, beside]
            ) + dy * ((1 - dx) * image[:, below, left] + dx * image[:, below, beside])
    return result


@given(seed=st.integers(0, 1000), reach=st.integers(1, 5 * ONE))
def test_pixels_are_mixed_as_a_plain_loop_does(seed: int, reach: int) -> None:
    images = images_of(2)
    generator = make_generator(seed)
    shifts = torch.randint(-reach, reach + 1, (2, 2, *SIZE), generator=generator).int()
    result = resample(images, shifts).numpy()
    for image, field, bent in zip(images.numpy(), shifts.numpy() / ONE, result, strict=True):
        # The same weights on both sides, so that rounding is all that is between them.
        assert np.abs(bent - bent_by_hand(image, field)).max() <= 0.5 + 1e-9


def test_one_field_serves_all_images() -> None:
    images = images_of()
    shifts = torch.randint(-300, 300, (1, 2, *SIZE), generator=make_generator(1)).int()
    assert torch.equal(resample(images, shifts), resample(images, shifts.expand(4, -1, -1, -1)))


def test_no_shift_changes_nothing() -> None:
    images = images_of()
    assert torch.equal(resample(images, torch.zeros(1, 2, *SIZE, dtype=torch.int32)), images)


def test_a_whole_pixel_moves_the_image_and_repeats_its_border() -> None:
    images = images_of()
    shifts = torch.zeros(1, 2, *SIZE, dtype=torch.int32)
    shifts[:, 1] = ONE
    expected = torch.cat([images[..., 1:], images[..., -1:]], dim=3)
    assert torch.equal(resample(images, shifts), expected)


def test_the_field_is_that_of_the_paper() -> None:
    """Against torch's own grid sampler, fed as equation 5 says."""
    side, strength = 32, 2.0
    probe = WarpProbe(target_class=0, strength=strength, grid=4, field_seed=3)
    images = images_of(2, (side, side))
    drawn = torch.randint(
        -(1 << 20), (1 << 20) + 1, (2, 4, 4), generator=make_generator("warp", 3)
    ).double()
    coarse = (drawn / drawn.abs().mean()).flip(0)  # the sampler has columns first
    smooth = functional.interpolate(coarse[None], side, mode="bicubic", align_corners=True)
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    identity = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    grid = (identity + strength * smooth[0].permute(1, 2, 0) / side).clamp(-1, 1)
    sampled = functional.grid_sample(
        images.double(), grid.expand(2, -1, -1, -1), align_corners=True
    )
    result = resample(images, smooth_field(probe, (side, side))[None])
    # Shifts have steps of 1/256 pixel: half a step of up to 255 on each axis, and the rounding.
    assert (result - sampled).abs().max() <= 0.5 + 2 * 255 / (2 * ONE)
    assert (result - images.double()).abs().mean() > 10


def test_given_shifts_are_taken_as_they_are_on_each_axis() -> None:
    field = smooth_field(constant(3, -2, strength=2), SIZE)
    assert field.dtype == torch.int32
    assert (field[0] == round(2 * 3 * 8 / 18 * ONE)).all()
    assert (field[1] == round(2 * -2 * 5 / 12 * ONE)).all()


def test_the_corners_of_the_grid_lie_on_the_corners_of_the_image() -> None:
    shifts = (((1.0, 0.0), (2.0, 0.0)), ((3.0, 0.0), (4.0, 0.0)))
    field = smooth_field(WarpProbe(target_class=0, strength=1, shifts=shifts), SIZE)[0]
    corners = [field[0, 0], field[0, -1], field[-1, 0], field[-1, -1]]
    assert [int(c) for c in corners] == [round(n * 8 / 18 * ONE) for n in (1, 2, 3, 4)]


def test_drawn_shifts_have_a_mean_size_of_one_and_follow_their_seed() -> None:
    # A grid as fine as the image is not stretched.
    probes = [WarpProbe(target_class=0, strength=1, grid=16, field_seed=seed) for seed in (1, 1, 2)]
    first, again, other = (smooth_field(probe, (16, 16)) for probe in probes)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.abs().double().mean()) == pytest.approx(15 / 32 * ONE, rel=0.01)


def test_random_shifts_reach_half_a_pixel_less_a_little() -> None:
    drawn = random_shifts(50, SIZE, make_generator(0))
    assert drawn.shape == (50, 2, *SIZE)
    assert int(drawn[:, 0].abs().max()) == round(ONE * 8 / 18)
    assert int(drawn[:, 1].abs().max()) == round(ONE * 5 / 12)
    assert abs(float(drawn.double().mean())) < 5


def test_shifts_that_are_no_rectangle_are_refused() -> None:
    ragged = (((0, 0), (0, 0)), ((0, 0), (0, 0), (0, 0)))
    with pytest.raises(ValidationError, match="rows of one and the same length"):
        WarpProbe(target_class=0, shifts=ragged)
