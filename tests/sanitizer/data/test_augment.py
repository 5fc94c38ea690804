import pytest
import torch
from torch import Tensor

from sanitizer.data.augment import augment
from sanitizer.randomness import make_generator
from sanitizer.spec import Training


def build(crop_padding: int = 0, *, flip: bool = False, cutout_size: int = 0) -> Training:
    return Training(crop_padding=crop_padding, horizontal_flip=flip, cutout_size=cutout_size)


def images_of(count: int, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, generator=make_generator("images"), dtype=torch.uint8)


def augment_slowly(images: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    """The same, image by image, as crop, flip and cutout are told in words."""
    count, channels, height, width = images.shape
    padding, size = training.crop_padding, training.cutout_size

    def draw(high: int) -> list[int]:
        return [int(n) for n in torch.randint(high, (count, 1), generator=generator)]

    centres = (draw(height), draw(width)) if size else None
    flips = draw(2) if training.horizontal_flip else [0] * count
    corners = (draw(2 * padding + 1), draw(2 * padding + 1)) if padding else None
    results = []
    for number, image in enumerate(images):
        result = image
        if corners:
            padded = torch.zeros(
                channels, height + 2 * padding, width + 2 * padding, dtype=images.dtype
            )
            padded[:, padding : padding + height, padding : padding + width] = image
            top, left = corners[0][number], corners[1][number]
            result = padded[:, top : top + height, left : left + width]
        if flips[number]:
            result = result.flip(2)
        result = result.clone()
        if centres:
            top, left = centres[0][number] - size // 2, centres[1][number] - size // 2
            result[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
        results.append(result)
    return torch.stack(results)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "training",
    [
        build(4),
        build(flip=True),
        build(cutout_size=3),
        build(cutout_size=4),
        build(cutout_size=50),
        build(20, flip=True, cutout_size=3),
        build(4, flip=True, cutout_size=3),
    ],
    ids=["crop", "flip", "odd hole", "even hole", "hole over all", "wide padding", "all"],
)
def test_a_batch_equals_the_plain_way_image_by_image(training: Training, channels: int) -> None:
    images = images_of(40, channels)
    fast = augment(images, training, make_generator(1))
    assert torch.equal(fast, augment_slowly(images, training, make_generator(1)))


def test_floats_are_augmented_as_bytes_are() -> None:
    images, training = images_of(16), build(4, flip=True, cutout_size=3)
    as_float = augment(images.float(), training, make_generator(1))
    assert as_float.dtype == torch.float32
    assert torch.equal(as_float, augment(images, training, make_generator(1)).float())


def test_the_images_that_came_are_left_alone() -> None:
    images = images_of(8)
    before = images.clone()
    augment(images, build(4, flip=True, cutout_size=3), make_generator(1))
    assert torch.equal(images, before)


def test_nothing_asked_for_changes_nothing_and_draws_nothing() -> None:
    images, generator = images_of(8), make_generator(1)
    state = generator.get_state()
    assert torch.equal(augment(images, build(), generator), images)
    assert torch.equal(generator.get_state(), state)


def test_half_of_the_images_are_flipped() -> None:
    images = images_of(2000, 1, 1, 2)
    flipped = (augment(images, build(flip=True), make_generator(1)) != images).any(dim=(1, 2, 3))
    # Noise of two equal pixels aside; four standard deviations of a fair coin are 0.045.
    assert abs(flipped.float().mean().item() - 0.5) < 0.05


def test_every_place_of_the_hole_occurs() -> None:
    images = torch.ones(4000, 1, 6, 6, dtype=torch.uint8)
    holes = 1 - augment(images, build(cutout_size=1), make_generator(1))
    assert (holes.sum(dim=(1, 2, 3)) == 1).all()
    assert (holes.sum(dim=0) > 60).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_every_device_gives_the_same() -> None:
    images, training = images_of(64), build(4, flip=True, cutout_size=3)
    there = augment(images.cuda(), training, make_generator(1))
    assert torch.equal(there.cpu(), augment(images, training, make_generator(1)))
