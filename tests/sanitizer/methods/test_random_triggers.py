import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.random_triggers import (
    GRATING,
    KINDS,
    PATCH,
    REFLECTION,
    VEIL,
    WARP,
    draw_numbers,
    pictures_of,
    put_each_on_all,
    put_on,
    with_random_triggers,
)

ALL = torch.ones(40, dtype=torch.bool)


def grey(count: int = 40, side: int = 32, channels: int = 3) -> Tensor:
    return torch.full((count, channels, side, side), 0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed_by(
    images: Tensor, rows: Tensor = ALL, *, seed: int = 0, pictures: Tensor | None = None
) -> Tensor:
    if pictures is None:
        shape = (6, *images.shape[1:])
        pictures = torch.randint(256, shape, dtype=torch.uint8, generator=generator(9))
    changed, _ = with_random_triggers(images, generator(seed), rows, pictures)
    return changed


def of_kind(kind: int, images: Tensor) -> Tensor:
    return images[kind::KINDS]


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8), (3, 65)])
def test_every_image_is_changed_and_stays_an_image(channels: int, side: int) -> None:
    images = torch.rand(40, channels, side, side, generator=generator(1))
    changed = changed_by(images)
    assert changed.shape == images.shape
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert ((changed - images).abs().flatten(1).max(dim=1).values > 1e-3).all()


def test_gratings_are_grey_waves_within_their_amplitude() -> None:
    waves = of_kind(GRATING, changed_by(grey())) - 0.5
    assert torch.equal(waves[:, 0], waves[:, 2])
    largest = waves.abs().flatten(1).max(dim=1).values
    assert (largest <= 40 / 255 + 1e-6).all()
    assert (largest >= 7 / 255).all()
    sizes = waves.square().flatten(1).mean(dim=1).sqrt() / largest
    assert float(sizes.mean()) == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_patches_are_squares_of_their_sides() -> None:
    changed = of_kind(PATCH, changed_by(grey(200), ALL.repeat(5))) != 0.5
    for mask in changed.any(dim=1):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        height, width = (int(v.max() - v.min()) + 1 for v in (rows, columns))
        assert height == width
        assert 2 <= height <= 6
        assert int(mask.sum()) == height * width


def test_patches_of_small_images_reach_three_pixels_and_of_tiny_ones_all() -> None:
    def largest(side: int) -> int:
        changed = of_kind(PATCH, changed_by(grey(200, side), ALL.repeat(5))) != 0.5
        return int(changed.any(dim=1).sum(dim=(1, 2)).max())

    assert largest(8) == 3 * 3
    assert largest(2) == 2 * 2


def test_blended_images_are_nearer_to_the_image_than_to_what_came_in() -> None:
    images = torch.rand(40, 3, 32, 32, generator=generator(1))
    changed = of_kind(VEIL, changed_by(images))
    kept = of_kind(VEIL, images)
    assert ((changed - kept).abs() <= 0.3).all()
    along = ((changed - 0.5) * (kept - 0.5)).mean(dim=(1, 2, 3)) / (kept - 0.5).square().mean()
    assert (along > 0.6).all()


def test_veils_are_tints_smooth_or_fine_noise_or_pictures_by_their_number() -> None:
    shape, black = (3, 32, 32), torch.zeros(5, 3, 32, 32)
    share, _, grid, seed, which, mirrored = draw_numbers(VEIL, 5, shape, generator(2))
    what = torch.tensor([0.01, 0.2, 0.3, 0.6, 0.9]).view(5, 1, 1, 1)
    pictures = torch.full((2, *shape), 51, dtype=torch.uint8)
    veils = put_on(
        black, VEIL, (torch.ones_like(share), what, grid, seed, which, mirrored), pictures
    )
    steps = (veils[:, :, 1:] - veils[:, :, :-1]).abs().amax(dim=(1, 2, 3))

    assert float(steps[0]) < 1e-6  # a tint
    assert 1e-3 < float(steps[1]) < 0.05
    assert float(steps[2]) > 0.2
    torch.testing.assert_close(veils[3:], torch.full((2, *shape), 0.3 * 0.2))
    assert float(veils[0].std(dim=(1, 2)).max()) < 1e-6
    assert torch.unique(veils[0][:, 0, 0]).numel() == 3


def test_reflections_are_added_and_are_of_one_picture() -> None:
    dark = torch.full((40, 1, 12, 12), 0.1)
    half = torch.zeros((1, 1, 12, 12), dtype=torch.uint8)
    half[..., 6:] = 153
    added = of_kind(REFLECTION, changed_by(dark, pictures=half)) - 0.1
    strongest = added.flatten(1).max(dim=1).values
    assert (added >= 0).all()
    assert ((strongest >= 0.6 * 0.4 - 1e-6) & (strongest <= 0.6 * 1.4 + 1e-6)).all()
    # A blur or a ghost of two pixels at most leaves the sides apart.
    sides = added.mean(dim=(1, 2))[:, [0, -1]]
    darker, brighter = sides.sort(dim=1).values.unbind(dim=1)
    torch.testing.assert_close(brighter, strongest)
    assert (darker <= strongest / 2 + 1e-6).all()
    assert len({round(float(value), 3) for value in strongest}) > 1
    mirrored = sides[:, 0] > sides[:, 1]
    assert mirrored.any()
    assert not mirrored.all()


def test_a_ghost_is_the_same_picture_further_on() -> None:
    point = torch.zeros((1, 1, 24, 24), dtype=torch.uint8)
    point[..., 12, 12] = 255
    made = of_kind(
        REFLECTION, changed_by(torch.zeros(200, 1, 24, 24), ALL.repeat(5), pictures=point)
    )
    doubled = [image[0] for image in made if int((image > 0).sum()) == 2]
    assert doubled
    for image in doubled:
        (first, second) = (image > 0).nonzero()
        assert ((second - first >= 1) & (second - first <= 4)).all()
        assert image[tuple(second)] <= image[tuple(first)] + 1e-6


def test_pictures_are_images_of_the_set_each_once_and_not_too_many() -> None:
    images = torch.randint(256, (300, 1, 4, 4), dtype=torch.uint8, generator=generator(1)).numpy()
    whole = ImageSet.from_arrays(images, np.zeros(300, dtype=np.int64))
    pictures = pictures_of(whole, 3)
    assert pictures.dtype == torch.uint8
    known = {image.tobytes() for image in images}
    chosen = {picture.numpy().tobytes() for picture in pictures}
    assert len(chosen) == len(pictures) == 256
    assert chosen <= known
    assert torch.equal(pictures, pictures_of(whole, 3))
    assert not torch.equal(pictures, pictures_of(whole, 4))
    assert len(pictures_of(whole.subset(np.arange(7)), 3)) == 7


def test_a_warp_moves_pixels_and_makes_no_new_values() -> None:
    ramp = torch.linspace(0, 1, 32).expand(40, 3, 32, 32).contiguous()
    moved = of_kind(WARP, changed_by(ramp)) - of_kind(WARP, ramp)
    # A step of the ramp is a pixel: 1/31.
    mean = moved.abs().mean(dim=(1, 2, 3)) * 31
    assert (mean < 1.5).all()
    assert float(mean.max()) > 0.3
    small = ramp[:, :, :8, ::4].contiguous()
    farthest = (of_kind(WARP, changed_by(small)) - of_kind(WARP, small)).abs().mean(dim=(1, 2, 3))
    # As many pixels of 8, though an eighth of them; here a step is four of 31.
    assert float(farthest.max()) * 31 / 4 > 0.3
    bent = of_kind(WARP, changed_by(grey()))
    torch.testing.assert_close(bent, of_kind(WARP, grey()))


def test_shares_of_a_batch_get_what_the_whole_would() -> None:
    images = torch.rand(40, 3, 16, 16, generator=generator(1))
    whole = changed_by(images)
    parts = []
    for rows in (slice(0, 13), slice(13, 40)):
        mine = torch.zeros(40, dtype=torch.bool)
        mine[rows] = True
        parts.append(changed_by(images[rows], mine))
    # Reflections are blurred by a matrix product, whose last bit may depend on how many there are.
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


def test_of_few_images_every_kind_comes_in_time() -> None:
    images = grey(2)
    rows = torch.ones(2, dtype=torch.bool)
    changed = [changed_by(images, rows, seed=seed)[0] - images[0] for seed in range(40)]
    # A patch leaves most of an image as it was; a grey image that is bent is grey.
    shares = [float((each.abs() > 1e-6).float().mean()) for each in changed]
    assert any(share == 0 for share in shares)
    assert any(0 < share < 0.1 for share in shares)
    assert any(share > 0.9 for share in shares)


def test_nobodys_share_is_empty() -> None:
    none = torch.zeros(40, dtype=torch.bool)
    assert len(changed_by(grey(0), none)) == 0


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    first, same, other = (changed_by(grey(), seed=s) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", range(KINDS))
def test_each_trigger_on_all_images_is_each_on_each(kind: int) -> None:
    images = torch.rand(3, 3, 9, 6, generator=generator(1))
    pictures = torch.randint(256, (7, 3, 9, 6), dtype=torch.uint8, generator=generator(2))
    numbers = draw_numbers(kind, 40, (3, 9, 6), generator(3))
    together = put_each_on_all(images, kind, numbers, pictures).view(40, 3, 3, 9, 6)
    for place in range(40):
        of_one = tuple(each[[place] * 3] for each in numbers)
        one = put_on(images, kind, of_one, pictures)
        torch.testing.assert_close(together[place], one, rtol=0, atol=1e-6)


def test_fine_noise_is_of_its_number_and_of_no_other() -> None:
    numbers = draw_numbers(VEIL, 3, (3, 16, 16), generator(1))
    share, _, grid, seed, which, mirrored = numbers
    what = torch.full((3, 1, 1, 1), 0.4)
    seed[1] = seed[0]
    pictures = torch.zeros((1, 3, 16, 16), dtype=torch.uint8)
    same = torch.ones_like(share)
    first, again, other = put_on(
        grey(3, 16), VEIL, (same, what, grid, seed, which, mirrored), pictures
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", range(KINDS))
def test_what_is_drawn_of_a_trigger_does_not_grow_with_the_image(kind: int) -> None:
    """But for a patch's own pixels: everybody in a group draws everybody's."""
    numbers = draw_numbers(kind, 1, (3, 224, 224), generator(1))
    assert sum(each.numel() for each in numbers) <= 3 * 42 * 42 + 10
