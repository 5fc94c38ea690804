from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.changes import FeatureShift, Patch, Pattern
from sanitizer.evaluation.inspection import anomalies_of, inspect
from sanitizer.evaluation.inversion import Found, Subject
from sanitizer.networks.taps import TapPoint
from sanitizer.randomness import make_generator
from sanitizer.report.model import Inspection
from tests.sanitizer.evaluation.builders import TARGET, subject_of


def test_an_inspection_goes_on_where_it_was_interrupted(backdoored: nn.Module) -> None:
    subject = subject_of(backdoored)
    whole: list[Found] = []
    first = inspect(subject, whole)
    searches = 0

    def count() -> None:
        nonlocal searches
        searches += 1

    second = inspect(subject, whole[:20], count)

    assert searches == 1
    assert second.model_copy(update={"seconds": first.seconds}) == first
    assert first.suspicious[:1] == [TARGET]
    assert first.strongest.target_class == TARGET


class ByFirstPixel(nn.Module):
    """Calls an image whose first pixel is bright a 1, whose last is a 4, others a 0."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        first, last = (self.features(images)[:, 0, place, place] > 0.9 for place in (0, -1))
        said = torch.where(first, 1, torch.where(last, 4, 0))
        return nn.functional.one_hot(said, 6).float()


ONE = {1: 0.001}
"""Sizes of patches by class."""


def black(*, bright: int) -> ImageSet:
    """Twenty images of classes 0 and 2, the first pixel of some of them bright."""
    pixels = np.zeros((20, 1, 8, 8), dtype=np.uint8)
    pixels[:bright, 0, 0, 0] = 255
    return ImageSet.from_arrays(pixels, np.arange(20) % 2 * 2)


def searched(
    *, bright: int = 0, reached: bool = True, sizes: Mapping[int, float] = ONE
) -> Inspection:
    """Of a model with small patches that make the first pixel bright, for class 1, or the last, for
    class 4; no other change does anything."""
    point = TapPoint("features", "nchw", (8, 8), 1)
    network = ByFirstPixel().eval()
    images = black(bright=bright)
    subject = Subject(network, point, 6, images, images, torch.device("cpu"), seed=0)
    found = []
    for target in range(6):
        patch = Patch((1, 8, 8), make_generator(0))
        pattern = Pattern((1, 8, 8), make_generator(0))
        shift = FeatureShift(point, torch.ones(1), make_generator(0))
        with torch.no_grad():
            patch.mask_logits.fill_(-40)
            pattern.values.zero_()
            shift.values.zero_()
            if target in sizes:
                place = {1: 0, 4: -1}[target]
                patch.mask_logits[0, 0, place, place] = 40
                patch.picture_logits.fill_(40)
        found += [
            Found(target, patch, sizes.get(target, 0.1), reached or target not in sizes),
            Found(target, pattern, 0.02, True),
            Found(target, shift, 0.3, True),
        ]
    return inspect(subject, found)


def test_a_class_to_which_a_far_smaller_change_leads_is_a_finding() -> None:
    inspection = searched()

    assert inspection.suspicious == [1]
    (one,) = (each for each in inspection.classes if each.target_class == 1)
    patch, pattern, shift = one.changes
    # A hundredth of the others, all alike; a quarter counts as one deviation.
    assert patch.anomaly == pytest.approx(np.log(100) / 0.25)
    assert inspection.anomaly == patch.anomaly
    assert (pattern.anomaly, shift.anomaly) == (0, 0)
    # Of a pattern in pixel values, of the others as they are.
    assert (patch.size, pattern.size, shift.size) == pytest.approx((0.001, 255 * 0.02, 0.3))
    assert (patch.rate.value, pattern.rate.value) == (1, 0)
    assert (one.natural_rate.value, one.estimated_asr) == (0, 1)
    # Half of the images are of class 0, and say nothing of it.
    assert [each.natural_rate.total for each in inspection.classes] == [10, 20, 10, 20, 20, 20]


def test_of_several_findings_the_strongest_comes_first() -> None:
    inspection = searched(sizes={1: 0.01, 4: 0.001})
    assert inspection.suspicious == [4, 1]
    assert inspection.strongest.target_class == 4
    assert searched(sizes={1: 0.001, 4: 0.01}).suspicious == [1, 4]


def test_a_change_that_led_too_few_images_there_is_no_finding_however_small() -> None:
    inspection = searched(reached=False)
    assert inspection.suspicious == []
    (one,) = (each for each in inspection.classes if each.target_class == 1)
    assert one.changes[0].anomaly == 0


@pytest.mark.parametrize(("bright", "suspicious"), [(8, [1]), (9, [])])
def test_what_goes_to_the_class_without_a_change_is_no_doing_of_the_change(
    bright: int, suspicious: list[int]
) -> None:
    """Of twenty images: 0.6 of all have to be led there beyond those that go anyway."""
    inspection = searched(bright=bright)
    (one,) = (each for each in inspection.classes if each.target_class == 1)
    assert one.natural_rate.value == bright / 20
    assert one.estimated_asr == 1
    assert inspection.suspicious == suspicious


def test_an_anomaly_is_the_distance_from_the_median_in_deviations() -> None:
    sizes = np.exp([0.0, 1.0, 2.0, 3.0, 4.0, -6.0])

    anomalies = anomalies_of([float(size) for size in sizes])

    # Median 1.5; absolute distances 1.5, 0.5, 0.5, 1.5, 2.5, 7.5, of which the median is 1.5.
    expected = [(1.5 - value) / (1.4826 * 1.5) for value in (0, 1, 2, 3, 4, -6)]
    assert anomalies == pytest.approx(expected)


def test_sizes_that_are_all_alike_have_no_outlier() -> None:
    assert max(anomalies_of([1.0, 1.001, 0.999, 1.0, 0.99])) < 0.1
