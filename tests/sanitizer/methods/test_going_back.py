"""Going back towards what a network was, as far as no trigger that was found gains by it."""

from collections.abc import Mapping
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sanitizer.methods.going_back import SHARES, go_back
from sanitizer.methods.random_triggers import VEIL, draw_numbers, smooth
from sanitizer.methods.trigger_search import FoundTriggers, TriggersOfKind
from sanitizer.randomness import make_generator
from tests.sanitizer.methods.networks import digit_set, trained

IMAGES = digit_set(800, 960)
CLASS = 7


class Leaning(nn.Module):
    """Calls all images a 7, the more surely the larger its one weight is; has a batch norm."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        logits = images.new_zeros((len(images), 10))
        return logits.index_add(1, torch.tensor([CLASS]), self.weight.expand(len(images), 1))


def veils() -> FoundTriggers:
    """One, to the class."""
    numbers = smooth(VEIL, draw_numbers(VEIL, 1, (1, 8, 8), make_generator(3)))
    return FoundTriggers({VEIL: TriggersOfKind(numbers, torch.tensor([CLASS]), torch.ones(1))})


def gone(
    network: nn.Module,
    towards: nn.Module,
    most: float = 0.3,
    most_regained: float = 0.1,
    found: FoundTriggers | None = None,
) -> Mapping[str, float]:
    return go_back(
        network, towards, most, most_regained, found, IMAGES, seed=0, precision=torch.float32
    )


def test_weights_and_statistics_go_all_of_the_way_where_nothing_was_found() -> None:
    network, towards = trained(), trained()
    with torch.no_grad():
        for value in towards.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=make_generator(1)))
    before, there = deepcopy(network.state_dict()), deepcopy(towards.state_dict())
    figures = gone(network, towards)

    assert figures == {"suspect_share": 0.3, "regained": 0.0}
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * there[name])
        else:
            assert torch.equal(value, before[name])
    assert all(torch.equal(value, there[name]) for name, value in towards.state_dict().items())


@pytest.mark.parametrize(
    # A softmax gives the class a probability of e^w / (e^w + 9): 0.1 at first.
    ("lure", "share"),
    [(1.0, SHARES[0]), (4.0, SHARES[1]), (6.0, SHARES[2]), (30.0, 0.0)],
)
def test_it_goes_as_far_as_what_was_found_gains_little(lure: float, share: float) -> None:
    network, towards = Leaning(0.0), Leaning(lure)
    figures = gone(network, towards, found=veils())

    assert figures["suspect_share"] == pytest.approx(0.3 * share)
    assert network.weight.item() == pytest.approx(0.3 * share * lure)
    assert 0 <= figures["regained"] <= 0.1
    assert (figures["regained"] > 0) == (share > 0)
    assert towards.weight.item() == lure


def test_what_may_be_regained_is_a_setting() -> None:
    network = Leaning(0.0)
    assert gone(network, Leaning(30.0), most_regained=1.0, found=veils())["suspect_share"] == 0.3
    assert network.weight.item() == pytest.approx(9.0)


def test_it_tells_of_every_image_that_goes_through_the_network() -> None:
    told: list[int] = []
    network = Leaning(0.0)
    go_back(
        network,
        Leaning(30.0),
        0.3,
        0.1,
        veils(),
        IMAGES,
        seed=0,
        precision=torch.float32,
        tell=told.append,
    )
    assert sum(told) == (1 + len(SHARES)) * 128
    assert not network.training
