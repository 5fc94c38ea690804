"""Clean images that are kept apart to choose by, and what a network gets right of them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.heldout import apart_to_prune_by, batches_for, count_right, hold_out_clean


def numbered(count: int, side: int = 2) -> ImageSet:
    """Images of ten classes, each of its own number in four pixels."""
    numbers = np.arange(count)
    images = np.zeros((count, 1, side, side), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 251, numbers // 251
    return ImageSet.from_arrays(images, numbers % 10)


def numbers_of(images: ImageSet) -> list[int]:
    return [int(image[0, 0, 0]) + 251 * int(image[0, 0, 1]) for image in images.images]


def test_a_tenth_is_kept_apart_in_the_shares_of_the_classes_and_by_the_seed() -> None:
    images = numbered(400)
    others, held = hold_out_clean(images, seed=1)
    assert (len(others), len(held)) == (360, 40)
    assert sorted(numbers_of(others) + numbers_of(held)) == list(range(400))
    assert held.class_counts(10) == [4] * 10
    assert numbers_of(hold_out_clean(images, seed=1)[1]) == numbers_of(held)
    assert numbers_of(hold_out_clean(images, seed=2)[1]) != numbers_of(held)


def test_so_few_that_they_would_say_little_are_not_parted() -> None:
    few, many = numbered(990), numbered(1000)
    assert apart_to_prune_by(few, seed=1) == (few, few)
    used, held = apart_to_prune_by(many, seed=1)
    assert (len(used), len(held)) == (900, 100)
    assert sorted(numbers_of(used) + numbers_of(held)) == list(range(1000))


class ByFirstPixel(nn.Module):
    """Calls an image by the last digit of its first pixel; in training it is always wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float64
        digit = (images[:, 0, 0, 0] * 255).round().long() + self.training
        return nn.functional.one_hot(digit % 10, 10).double()


@pytest.mark.parametrize("side", [2, 224])
def test_what_is_counted_is_what_a_network_in_use_gets_right(side: int) -> None:
    images = numbered(70, side)
    images.labels[:7] = (images.labels[:7] + 1) % 10
    told: list[int] = []
    assert count_right(ByFirstPixel().train(), images, told.append) == 63
    assert sum(told) == 70


def test_batches_are_all_images_in_their_order() -> None:
    images = numbered(500)
    seen = list(batches_for(ByFirstPixel(), images))
    pixels = torch.cat([batch for batch, _ in seen])
    assert torch.equal(pixels, torch.from_numpy(images.images).double() / 255)
    assert torch.equal(torch.cat([labels for _, labels in seen]), torch.from_numpy(images.labels))
