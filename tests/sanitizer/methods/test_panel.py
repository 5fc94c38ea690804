"""Clean images that triggers are tried on."""

import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.panel import Panel
from sanitizer.methods.random_triggers import PATCH
from sanitizer.randomness import make_generator
from tests.sanitizer.methods.patches import corner_patches, images_called

CPU = torch.device("cpu")
PICTURES = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)


class ByPixels(nn.Module):
    """Surely a 2 where the first pixel is white; else what the last pixel says."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        last = (images[:, 0, -1, -1] * 255).round().long()
        said = torch.where(images[:, 0, 0, 0] > 0.9, 2, last)
        return 100 * nn.functional.one_hot(said, 3).float()


def panel(of: ImageSet, count: int = 128) -> Panel:
    generator = make_generator(0)
    return Panel.of(of, count, generator, PICTURES, ByPixels(), torch.float32, CPU)


@pytest.mark.parametrize("many", [1, 60])
def test_rates_are_those_of_images_of_other_classes(many: int) -> None:
    """More triggers than go through at once have the same rates."""
    told: list[int] = []
    some = panel(images_called([0, 0, 0, 1, 1], [0, 0, 1, 1, 2]))
    rates = some.rates(ByPixels(), PATCH, corner_patches(*[0.0, 1.0] * many), told.append)
    # Black does nothing, white leads all to 2; nothing is told of a 0 that is a 0.
    expected = torch.tensor([[0, 1 / 3, 1 / 5], [0, 0, 1]])
    torch.testing.assert_close(rates, expected.repeat(many, 1))
    assert sum(told) == 2 * many * 5


def test_a_class_that_all_images_are_of_has_no_rate() -> None:
    rates = panel(images_called([2, 2], [2, 2])).rates(
        ByPixels(), PATCH, corner_patches(1.0), lambda _: None
    )
    torch.testing.assert_close(rates, torch.zeros(1, 3))


def test_images_are_drawn_with_their_labels_and_are_no_more_than_asked_for() -> None:
    some = panel(images_called([n % 3 for n in range(90)], [n % 3 for n in range(90)]), 20)
    assert len(some.images) == len(some.labels) == 20
    assert torch.equal((some.images[:, 0, -1, -1] * 255).round().long(), some.labels)
    assert len(set(some.labels[:9].tolist())) > 1
    assert len(panel(images_called([0, 1], [0, 1])).labels) == 2
