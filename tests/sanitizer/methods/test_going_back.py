"""Going back towards what a network was, as far as no trigger that was found gains by it."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sanitizer.cost.workload import TRIED_SHARES, tried_images
from sanitizer.events import Stage
from sanitizer.methods.going_back import MOST_LOST, go_back
from sanitizer.methods.plan import Bench, ChangingStage, plan
from sanitizer.methods.random_triggers import VEIL, draw_numbers, smooth
from sanitizer.methods.trigger_search import FoundTriggers, TriggersOfKind
from sanitizer.randomness import make_generator
from sanitizer.spec import METHOD_ADAPTER
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
    found = found or veils()
    return go_back(
        network, towards, most, most_regained, found, IMAGES, seed=0, precision=torch.float32
    )


def moved(network: nn.Module, by: float) -> nn.Module:
    """Another one, whose weights and statistics lie somewhere beside."""
    other = deepcopy(network)
    generator = make_generator(1)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + by * (2 * torch.rand(value.shape, generator=generator) - 1))
    return other


def test_weights_and_statistics_go_all_of_the_way_where_nothing_comes_back() -> None:
    network = trained()
    towards = moved(network, 0.1)
    before, there = deepcopy(network.state_dict()), deepcopy(towards.state_dict())
    figures = gone(network, towards)

    assert figures["gone"] == 0.3
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * there[name])
        else:
            assert torch.equal(value, before[name])
    assert all(torch.equal(value, there[name]) for name, value in towards.state_dict().items())


@pytest.mark.parametrize(
    # A softmax gives the class a probability of e^w / (e^w + 9): 0.1 at first.
    ("lure", "share"),
    [(1.0, TRIED_SHARES[0]), (4.0, TRIED_SHARES[1]), (6.0, TRIED_SHARES[2]), (30.0, 0.0)],
)
def test_it_goes_as_far_as_what_was_found_gains_little(lure: float, share: float) -> None:
    network, towards = Leaning(0.0), Leaning(lure)
    figures = gone(network, towards, found=veils())

    assert figures["gone"] == pytest.approx(0.3 * share, abs=1e-4)
    assert network.weight.item() == pytest.approx(0.3 * share * lure)
    # What the shortest way would have regained is told where none was gone.
    assert (figures["regained"] <= 0.1) == (share > 0)
    assert towards.weight.item() == lure


def test_what_may_be_regained_is_a_setting() -> None:
    network = Leaning(0.0)
    assert gone(network, Leaning(30.0), most_regained=1.0, found=veils())["gone"] == 0.3
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
    assert sum(told) == (1 + len(TRIED_SHARES)) * 2 * 128  # as they are, and with the veil
    assert not network.training


def test_where_accuracy_is_lost_on_the_way_it_stays() -> None:
    network = trained()
    far = moved(network, 30.0)
    before = deepcopy(network.state_dict())
    figures = gone(network, far, most_regained=1.0)

    assert MOST_LOST < 0.3
    assert figures["gone"] == 0.0
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize(
    "method",
    [
        {"preset": "paper"},
        {"preset": "fast"},
        {"classifier_shift": 0.01},
        {"suspect_share": 0},
        {"hardening": {"found_share": 0}, "student_hardening": {"found_share": 0}},
    ],
    ids=str,
)
def test_who_goes_back(method: dict[str, Any]) -> None:
    config = METHOD_ADAPTER.validate_python({"name": "argd", **method})
    assert Stage.GO_BACK not in {stage.stage for stage in plan(config)}
    assert tried_images(config, 2500) == 0

    default = METHOD_ADAPTER.validate_python({"name": "argd"})
    assert [stage.stage for stage in plan(default)][-1] is Stage.GO_BACK
    assert tried_images(default, 2500) == 4 * 13 * 128
    assert tried_images(default, 100) == 4 * 13 * 100


@pytest.mark.parametrize(("is_easy", "gone"), [(False, 0.3), (True, 0.0)])
def test_how_far_it_goes_is_the_methods_setting_and_nowhere_where_the_task_is_easy(
    is_easy: bool, gone: float
) -> None:
    method = {"name": "argd", "suspect_share": 0.3, "most_regained": 1.0}
    stage = plan(METHOD_ADAPTER.validate_python(method))[-1]
    assert isinstance(stage, ChangingStage)
    student, suspect = Leaning(0.0), Leaning(30.0)
    bench = Bench(student, Leaning(1.0), [], 0, found=veils(), suspect=suspect, is_easy=is_easy)

    figures = stage.change(bench, IMAGES, lambda _: None)

    assert figures["gone"] == gone
    assert student.weight.item() == pytest.approx(30 * gone)
    assert suspect.weight.item() == 30


def test_it_does_not_go_where_answers_are_no_numbers() -> None:
    network = Leaning(0.0)
    figures = gone(network, Leaning(float("nan")), most_regained=1.0, found=veils())
    assert figures["gone"] == 0.0
    assert network.weight.item() == 0.0
