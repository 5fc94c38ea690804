import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.inversion import (
    Subject,
    groups_of,
    likely_targets,
    rate_of,
    restore,
    search,
)
from sanitizer.networks.taps import tapped
from sanitizer.report.model import ChangeFamily
from tests.sanitizer.evaluation.builders import TARGET, images, subject_of
from tests.sanitizer.methods.networks import fresh


def test_the_patch_of_a_backdoor_is_smaller_than_that_of_any_other_class(
    backdoored: nn.Module,
) -> None:
    subject = subject_of(backdoored)

    found = search(subject, range(10), ChangeFamily.PATCH)

    assert min(found, key=lambda each: each.size).target == TARGET
    (own,) = (each for each in found if each.target == TARGET)
    assert own.reached
    assert rate_of(subject, TARGET, own.change).value > 0.8


def test_what_is_found_is_the_same_each_time_and_leaves_the_network_as_it_was(
    backdoored: nn.Module,
) -> None:
    before = copy.deepcopy(backdoored.state_dict())
    subject = subject_of(backdoored)

    (first,), (second,) = (search(subject, [1], ChangeFamily.PATTERN) for _ in range(2))

    assert first.size == second.size
    assert torch.equal(first.change.values, second.change.values)  # type: ignore[arg-type]  # a tensor
    assert all(torch.equal(value, before[name]) for name, value in backdoored.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in backdoored.parameters())


@pytest.mark.parametrize("family", list(ChangeFamily))
def test_classes_that_are_searched_together_are_found_as_each_alone(
    backdoored: nn.Module, family: ChangeFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first look at the rate is after 10 steps; later ones may turn on the last bit.
    monkeypatch.setattr("sanitizer.evaluation.inversion.SEARCH_STEPS", 9)
    subject = subject_of(backdoored)

    together = search(subject, [TARGET, 5, 7], family)

    for found in together:
        (alone,) = search(subject, [found.target], family)
        assert found.size == pytest.approx(alone.size, rel=1e-3)
        for name, value in alone.change.state_dict().items():
            assert torch.allclose(found.change.state_dict()[name], value, atol=1e-2), name


class Unmoved(nn.Module):
    """Says of an image what its first pixel is in truth, whatever was added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, given: Tensor) -> Tensor:
        said = (given.amax(dim=(1, 2, 3)) > 0.5).long()
        return nn.functional.one_hot(said, 2).float() + 0 * given.sum()


@pytest.mark.parametrize(("bright", "reached"), [(50, False), (100, True)])
def test_a_change_has_reached_its_class_if_nine_in_ten_images_went_there(
    monkeypatch: pytest.MonkeyPatch, bright: int, reached: bool
) -> None:
    """Counted over a few steps: what went there before is no matter."""
    monkeypatch.setattr("sanitizer.evaluation.inversion.SEARCH_STEPS", 40)
    pixels = np.zeros((100, 1, 8, 8), dtype=np.uint8)
    pixels[:bright] = 255
    black_or_white = ImageSet.from_arrays(pixels, np.zeros(100, dtype=np.int64))
    subject = replace(
        subject_of(fresh()),
        network=Unmoved().eval(),
        num_classes=2,
        searched=black_or_white,
        measured=black_or_white,
    )
    (found,) = search(subject, [1], ChangeFamily.PATTERN)
    assert found.reached == reached
    assert rate_of(subject, 1, found.change).value == bright / 100


def test_small_images_are_searched_for_several_classes_at_once(backdoored: nn.Module) -> None:
    subject = subject_of(backdoored)
    assert groups_of(subject, range(40)) == [list(range(32)), list(range(32, 40))]


@pytest.mark.parametrize("family", list(ChangeFamily))
def test_a_find_that_went_through_a_checkpoint_does_what_it_did(
    backdoored: nn.Module, family: ChangeFamily
) -> None:
    subject = subject_of(backdoored)
    (found,) = search(subject, [TARGET], family)

    again = restore(subject, found.state())

    assert (again.target, again.size, again.reached) == (found.target, found.size, found.reached)
    assert rate_of(subject, TARGET, again.change) == rate_of(subject, TARGET, found.change)


def deviations_by_hand(subject: Subject) -> Tensor:
    with torch.no_grad(), tapped(subject.network, [subject.point]) as taps:
        subject.network(torch.from_numpy(subject.searched.images).float() / 255)
        (features,) = taps.take()
    return features.transpose(0, 1).flatten(1).std(dim=1)


@pytest.mark.parametrize("at_once", [250, 7])
def test_features_are_shifted_in_deviations_over_images_of_all_classes(
    backdoored: nn.Module, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("sanitizer.evaluation.inversion.images_at_once", lambda *_: at_once)
    by_class = images(0, 1700)
    by_class = by_class.subset(np.argsort(by_class.labels, kind="stable"))
    subject = replace(subject_of(backdoored), searched=by_class)
    # The first 250, of two classes, are half of it off.
    torch.testing.assert_close(
        subject.deviations, deviations_by_hand(subject), rtol=0.15, atol=1e-6
    )
    few = replace(subject_of(backdoored), searched=images(1000, 1100))
    torch.testing.assert_close(few.deviations, deviations_by_hand(few), rtol=1e-5, atol=1e-7)


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
    (other,) = set(likely_targets(subject, [9, TARGET, 8, 0])) - {9, TARGET, 8}
    assert other == 0
    assert len(likely_targets(subject, [9])) == 4
    assert 9 in likely_targets(subject, [9])
