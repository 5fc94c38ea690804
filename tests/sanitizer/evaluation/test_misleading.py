"""How many images the triggers lead that a search found."""

import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.misleading import rates_of_strongest
from sanitizer.methods.random_triggers import PATCH
from sanitizer.methods.trigger_search import FoundTriggers, TriggersOfKind
from tests.sanitizer.methods.patches import corner_patches, images_called

CLASSES = 3
CPU = torch.device("cpu")
PICTURES = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)


def found(*patches_of: tuple[float, int, float]) -> FoundTriggers:
    """Patches, as colour, target and rate."""
    colours, targets, rates = zip(*patches_of, strict=True)
    of_kind = TriggersOfKind(corner_patches(*colours), torch.tensor(targets), torch.tensor(rates))
    return FoundTriggers({PATCH: of_kind})


class ByCorner(nn.Module):
    """Calls an image a 2 whose corner is white, a 1 where it is grey; else by its last pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        corner, last = images[:, 0, 0, 0], (images[:, 0, -1, -1] * 255).round().long()
        said = torch.where(corner > 0.9, 2, torch.where(corner > 0.4, 1, last))
        return nn.functional.one_hot(said, CLASSES).float()


def images(labels: list[int], said: list[int]) -> ImageSet:
    return images_called(labels, said, [str(n) for n in range(CLASSES)])


def rates(triggers: FoundTriggers, of: ImageSet) -> dict[tuple[int, int], tuple[int, int]]:
    measured = rates_of_strongest(ByCorner().train(), triggers, of, PICTURES, seed=0, device=CPU)
    return {which: (rate.count, rate.total) for which, rate in measured}


def test_a_trigger_is_told_by_the_images_of_other_classes_that_it_leads_to_its_own() -> None:
    some = images([0] * 70 + [1] * 30 + [2] * 20, [0] * 120)
    # White leads to 2, grey to 1 and not to 0, and black nowhere.
    triggers = found((1.0, 2, 0.2), (0.5, 1, 0.9), (0.5, 0, 0.8))
    led = {(PATCH, 0): (100, 100), (PATCH, 1): (90, 90), (PATCH, 2): (0, 50)}
    assert rates(triggers, some) == led
    assert rates(found((0.0, 1, 0.5)), some) == {(PATCH, 0): (0, 90)}


def test_what_goes_to_the_class_anyway_counts_too() -> None:
    some = images([0] * 20 + [1] * 10, [1] * 5 + [0] * 25)
    assert rates(found((0.0, 1, 0.5)), some) == {(PATCH, 0): (5, 20)}


def test_a_class_that_all_images_are_of_is_passed_over() -> None:
    some = images([2] * 8, [2] * 8)
    assert rates(found((1.0, 2, 0.9), (0.5, 1, 0.5)), some) == {(PATCH, 1): (8, 8)}


def test_of_many_images_the_same_two_hundred_in_their_shares_tell() -> None:
    some = images([0] * 300 + [1] * 100, [0] * 400)
    assert rates(found((1.0, 2, 0.9)), some) == {(PATCH, 0): (200, 200)}
    assert rates(found((0.5, 1, 0.9)), some) == {(PATCH, 0): (150, 150)}


def test_of_classes_that_several_triggers_lead_to_the_strongest_is_told() -> None:
    some = images([0] * 10, [0] * 10)
    triggers = found((1.0, 1, 0.1), (0.5, 1, 0.3), (1.0, 2, 0.2))
    assert rates(triggers, some) == {(PATCH, 1): (10, 10), (PATCH, 2): (10, 10)}
