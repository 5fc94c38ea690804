import copy

import numpy as np
import pytest
import torch
from torch import nn

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.victim import VictimRecipe, train_victim
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.inversion import (
    Found,
    Patch,
    Pattern,
    Subject,
    anomalies_of,
    inspect,
    likely_targets,
    rate_of,
    restore,
    search,
)
from sanitizer.networks.registry import build_network
from sanitizer.networks.taps import find_taps
from sanitizer.randomness import make_generator
from sanitizer.report.model import ChangeFamily
from sanitizer.spec import PatchProbe, Training
from tests.sanitizer.builders import digits

TARGET = 3
PROBE = PatchProbe(target_class=TARGET, row=0, column=0, pixels=[[255, 0], [0, 255]])
TRAINING = Training.model_validate(
    {
        "phases": [{"epochs": 6, "learning_rate": 0.1}, {"epochs": 2, "learning_rate": 0.01}],
        "crop_padding": 1,
        "horizontal_flip": False,
        "cutout_size": 0,
    }
)


def images(start: int, end: int) -> ImageSet:
    pixels, labels = digits(start, end)
    return ImageSet(
        pixels, labels, [str(n) for n in range(10)], [str(n) for n in range(end - start)]
    )


def subject_of(network: nn.Module) -> Subject:
    (*_, point) = find_taps(network, "wrn-10-1", (8, 8), 1)
    return Subject(
        network=network.eval(),
        point=point,
        num_classes=10,
        searched=images(1000, 1300),
        measured=images(1300, 1600),
        device=torch.device("cpu"),
        seed=0,
    )


@pytest.fixture(scope="module")
def backdoored() -> nn.Module:
    network = build_network("wrn-10-1", 10, 1, make_generator(0))
    trigger = make_trigger(PROBE, input_size=(8, 8), channels=1, num_classes=10)
    recipe = VictimRecipe(0.1, TRAINING)
    train_victim(network, images(0, 1000), trigger, recipe, device=torch.device("cpu"))
    return network.eval()


def test_the_patch_of_a_backdoor_is_smaller_than_that_of_any_other_class(
    backdoored: nn.Module,
) -> None:
    subject = subject_of(backdoored)

    found = [search(subject, target, ChangeFamily.PATCH) for target in range(10)]

    assert min(found, key=lambda each: each.size).target == TARGET
    (own,) = (each for each in found if each.target == TARGET)
    assert own.reached
    assert rate_of(subject, TARGET, own.change).value > 0.8


def test_what_is_found_is_the_same_each_time_and_leaves_the_network_as_it_was(
    backdoored: nn.Module,
) -> None:
    before = copy.deepcopy(backdoored.state_dict())
    subject = subject_of(backdoored)

    first, second = (search(subject, 1, ChangeFamily.PATTERN) for _ in range(2))

    assert first.size == second.size
    assert torch.equal(first.change.values, second.change.values)  # type: ignore[arg-type]  # a tensor
    assert all(torch.equal(value, before[name]) for name, value in backdoored.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in backdoored.parameters())


@pytest.mark.parametrize("family", list(ChangeFamily))
def test_a_find_that_went_through_a_checkpoint_does_what_it_did(
    backdoored: nn.Module, family: ChangeFamily
) -> None:
    subject = subject_of(backdoored)
    found = search(subject, TARGET, family)

    again = restore(subject, found.state())

    assert (again.target, again.size, again.reached) == (found.target, found.size, found.reached)
    assert rate_of(subject, TARGET, again.change) == rate_of(subject, TARGET, found.change)


def test_an_inspection_goes_on_where_it_was_interrupted(backdoored: nn.Module) -> None:
    subject = subject_of(backdoored)
    whole: list[Found] = []
    first = inspect(subject, whole)
    searches = 0

    def count() -> None:
        nonlocal searches
        searches += 1

    second = inspect(subject, whole[:28], count)

    assert searches == 2
    assert second.model_copy(update={"seconds": first.seconds}) == first
    assert first.suspicious[:1] == [TARGET]
    assert first.strongest.target_class == TARGET


def test_a_patch_is_cut_down_to_the_pixels_that_are_replaced_most() -> None:
    patch = Patch((3, 40, 50), make_generator(0))
    with torch.no_grad():
        patch.mask_logits[0, 0, 5, :30] = 20.0
        patch.mask_logits[0, 0, 5, 0] = 30.0

    patch.cut()

    assert patch.mask.sum().item() == pytest.approx(20, abs=1e-3)
    assert patch.mask[0, 0, 5, 0] == 1
    assert patch.size().item() <= Patch.budget


def test_a_pattern_is_cut_down_by_a_factor_and_a_small_one_stays() -> None:
    pattern = Pattern((3, 8, 8), make_generator(0))
    small = pattern.values.detach().clone()
    pattern.cut()
    assert torch.equal(pattern.values, small)

    with torch.no_grad():
        pattern.values.mul_(100)
    pattern.cut()

    assert pattern.size().item() == pytest.approx(Pattern.budget)
    ratio = pattern.values / small
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio))


def test_an_anomaly_is_the_distance_from_the_median_in_deviations() -> None:
    sizes = np.exp([0.0, 1.0, 2.0, 3.0, 4.0, -6.0])

    anomalies = anomalies_of([float(size) for size in sizes])

    # Median 1.5; absolute distances 1.5, 0.5, 0.5, 1.5, 2.5, 7.5, of which the median is 1.5.
    expected = [(1.5 - value) / (1.4826 * 1.5) for value in (0, 1, 2, 3, 4, -6)]
    assert anomalies == pytest.approx(expected)


def test_sizes_that_are_all_alike_have_no_outlier() -> None:
    assert max(anomalies_of([1.0, 1.001, 0.999, 1.0, 0.99])) < 0.1


def test_of_many_classes_those_are_searched_that_misled_images_fall_into(
    backdoored: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(backdoored)
    assert likely_targets(subject) == list(range(10))
    monkeypatch.setattr("sanitizer.evaluation.inversion.MAX_TARGETS", 4)

    chosen = likely_targets(subject)

    assert len(chosen) == 4
    assert chosen == sorted(chosen)
    assert TARGET in chosen
