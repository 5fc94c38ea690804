import math

import pytest
import torch
from torch import Tensor

from sanitizer.methods.random_triggers import KINDS, with_random_triggers

GRATING, BLENDED, PATCHED, WARPED = range(KINDS)
ALL = torch.ones(40, dtype=torch.bool)


def grey(count: int = 40, side: int = 32, channels: int = 3) -> Tensor:
    return torch.full((count, channels, side, side), 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_kind(kind: int, images: Tensor) -> Tensor:
    return images[kind::KINDS]


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8), (3, 65)])
def test_every_image_is_changed_and_stays_an_image(channels: int, side: int) -> None:
    images = torch.rand(40, channels, side, side, generator=generator(1))
    changed = with_random_triggers(images, generator(), ALL)
    assert changed.shape == images.shape
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert ((changed - images).abs().flatten(1).max(dim=1).values > 0.01).all()


def test_gratings_are_grey_waves_within_their_amplitude() -> None:
    waves = of_kind(GRATING, with_random_triggers(grey(), generator(), ALL)) - 0.5
    assert torch.equal(waves[:, 0], waves[:, 2])
    largest = waves.abs().flatten(1).max(dim=1).values
    assert (largest <= 24 / 255 + 1e-6).all()
    assert (largest >= 7 / 255).all()
    sizes = waves.square().flatten(1).mean(dim=1).sqrt() / largest
    assert float(sizes.mean()) == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_patches_are_squares_of_their_sides() -> None:
    changed = of_kind(PATCHED, with_random_triggers(grey(200), generator(), ALL.repeat(5))) != 0.5
    for mask in changed.any(dim=1):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        height, width = (int(v.max() - v.min()) + 1 for v in (rows, columns))
        assert height == width
        assert 2 <= height <= 6
        assert int(mask.sum()) == height * width


def test_blended_images_are_nearer_to_the_image_than_to_what_came_in() -> None:
    images = torch.rand(40, 3, 32, 32, generator=generator(1))
    changed = of_kind(BLENDED, with_random_triggers(images, generator(), ALL))
    kept = of_kind(BLENDED, images)
    assert ((changed - kept).abs() <= 0.3).all()
    along = ((changed - 0.5) * (kept - 0.5)).mean(dim=(1, 2, 3)) / (kept - 0.5).square().mean()
    assert (along > 0.6).all()


def test_a_warp_moves_pixels_and_makes_no_new_values() -> None:
    ramp = torch.linspace(0, 1, 32).expand(40, 3, 32, 32).contiguous()
    moved = of_kind(WARPED, with_random_triggers(ramp, generator(), ALL)) - of_kind(WARPED, ramp)
    # A step of the ramp is a pixel: 1/31.
    mean = moved.abs().mean(dim=(1, 2, 3)) * 31
    assert (mean < 1.5).all()
    assert float(mean.max()) > 0.3
    bent = of_kind(WARPED, with_random_triggers(grey(), generator(), ALL))
    torch.testing.assert_close(bent, of_kind(WARPED, grey()))


def test_shares_of_a_batch_get_what_the_whole_would() -> None:
    images = torch.rand(40, 3, 16, 16, generator=generator(1))
    whole = with_random_triggers(images, generator(), ALL)
    parts = []
    for rows in (slice(0, 13), slice(13, 40)):
        mine = torch.zeros(40, dtype=torch.bool)
        mine[rows] = True
        parts.append(with_random_triggers(images[rows], generator(), mine))
    assert torch.equal(torch.cat(parts), whole)


def test_nobodys_share_is_empty() -> None:
    none = torch.zeros(40, dtype=torch.bool)
    assert len(with_random_triggers(grey(0), generator(), none)) == 0


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    first, same, other = (with_random_triggers(grey(), generator(s), ALL) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
