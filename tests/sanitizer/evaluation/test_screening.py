"""Images with a trigger among the clean ones, as a backdoored network sees them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.attacks.trigger import make_trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.screening import (
    CARRIED_RATE,
    Carrier,
    Screen,
    Split,
    difference_of_halves,
    splits_of,
)
from sanitizer.networks.registry import build_network
from sanitizer.networks.taps import TapPoint, find_taps
from sanitizer.randomness import make_generator
from tests.sanitizer.evaluation.builders import PROBE, TARGET, images


def screen_of(network: nn.Module) -> Screen:
    (*_, point) = find_taps(network, "wrn-10-1", (8, 8), 1)
    return Screen(network.eval(), point, torch.device("cpu"))


def poisoned(start: int, end: int, count: int, *, own_class: bool = False) -> ImageSet:
    """Digits, the first `count` of other classes, or of the target's own, with the trigger on."""
    clean = images(start, end)
    pixels, labels = np.array(clean.images), np.array(clean.labels)
    places = np.flatnonzero((labels == TARGET) == own_class)[:count]
    trigger = make_trigger(PROBE, input_size=(8, 8), channels=1, num_classes=10)
    pixels[places] = trigger.apply(torch.from_numpy(pixels[places])).numpy()
    labels[places] = TARGET
    names = [f"poisoned {n}" if n in places else f"clean {n}" for n in range(len(labels))]
    return ImageSet(pixels, labels, clean.class_names, names)


def kinds_of(mixed: ImageSet, carriers: list[Carrier]) -> dict[str, int]:
    """How many of those that were found are poisoned, and how many clean."""
    found = [mixed.names[place].split()[0] for each in carriers for place in each.places]
    return {"poisoned": found.count("poisoned"), "clean": found.count("clean")}


def test_images_with_the_trigger_are_told_from_their_class(backdoored: nn.Module) -> None:
    mixed = poisoned(1000, 1500, 25)
    carriers = screen_of(backdoored).carriers(mixed, seed=0)
    assert {carrier.target for carrier in carriers} == {TARGET}
    found = kinds_of(mixed, carriers)
    assert found["poisoned"] >= 15
    assert found["clean"] <= 5
    carrier = carriers[0]
    assert carrier.rate > CARRIED_RATE
    assert carrier.trace.shape == (1, 8, 8)
    # What they have in common is the trigger, with its two bright pixels.
    assert min(carrier.trace[0, 0, 0], carrier.trace[0, 1, 1]) > 60


def test_it_finds_them_where_they_are_most_of_their_class(backdoored: nn.Module) -> None:
    mixed = poisoned(1000, 1500, 60)
    carriers = screen_of(backdoored).carriers(mixed, seed=0)
    assert {carrier.target for carrier in carriers} == {TARGET}
    found = kinds_of(mixed, carriers)
    assert found["poisoned"] >= 40
    assert found["clean"] <= 5


def test_other_images_are_told_by_what_was_found(backdoored: nn.Module) -> None:
    screen = screen_of(backdoored)
    carriers = screen.carriers(poisoned(1000, 1500, 25), seed=0)
    others = poisoned(1500, 1797, 15)
    found = [others.names[place].split()[0] for place in screen.carried_by(others, carriers)]
    assert found.count("poisoned") >= 8
    assert found.count("clean") <= 5
    assert list(screen.carried_by(images(1500, 1797), [])) == []


class ByTwoPixels(nn.Module):
    """Calls an image whose first pixel is bright a 1, one brighter than there is a 2, and any other
    by its last pixel. Its only feature is the last but one."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        first, last = images[:, 0, 0, 0], (images[:, 0, -1, -1] * 255).round().long()
        self.look(images[:, :, -1:, -2:-1])
        said = torch.where(first > 1.01, 2, torch.where(first > 0.6, 1, last))
        return nn.functional.one_hot(said, 256).float()


def by_pixels(labels: list[int], said: list[int], features: list[int]) -> ImageSet:
    pixels = np.zeros((len(labels), 1, 4, 4), dtype=np.uint8)
    pixels[:, 0, -1, -1], pixels[:, 0, -1, -2] = said, features
    return ImageSet.from_arrays(pixels, np.array(labels))


def eyes() -> Screen:
    return Screen(ByTwoPixels(), TapPoint("look", "nchw", (1, 1), 1), torch.device("cpu"))


def test_a_trace_is_tried_on_images_that_neither_are_of_its_class_nor_go_there_anyway() -> None:
    labels, said = [0] * 40 + [3] * 20 + [1] * 9, [0] * 30 + [1] * 10 + [3] * 20 + [1] * 8 + [0]
    trace = np.zeros((1, 4, 4))
    trace[0, 0, 0] = 200
    weak, too_much = 0.5 * trace, 2 * trace

    led, tried = eyes().led_by(by_pixels(labels, said, said), [trace, weak, too_much], 1, seed=0)

    # No pixel becomes brighter than there is.
    assert (led, tried) == ([50, 0, 50], 50)


def with_carriers(features: Tensor, count: int) -> ImageSet:
    """60 images of class 1, of which the first `count` features' have a bright first pixel, and 60
    of class 0. Every other one of class 1 is like all of it."""
    places = torch.arange(60).view(-1, 2)
    order = torch.cat([places[: count // 2], places[count // 2 :]])
    in_turn = torch.linspace(0, len(order) - 1, len(order)).mul(7).long() % len(order)
    order = order[in_turn].flatten()
    images = by_pixels(
        [1] * 60 + [0] * 60, [1] * 60 + [0] * 60, [*features[order].tolist(), *[0] * 60]
    )
    images.images[:60][(order < count).numpy(), 0, 0, 0] = 200
    return images


def around(middle: float, deviation: float, count: int) -> Tensor:
    """Features in their order, the largest first."""
    spread: Tensor = torch.special.ndtri((torch.arange(count) + 0.5) / count)
    return (middle - deviation * spread).round().long()


@pytest.mark.parametrize(("of_carriers", "of_others"), [(200, 60), (60, 200)])
@pytest.mark.parametrize("count", [20, 40])
def test_what_is_apart_and_leads_others_to_its_class_carries_a_trigger(
    of_carriers: int, of_others: int, count: int
) -> None:
    """On whichever side it lies. The rest of its class leads there too, by the last pixel that all
    of the class have: of two that do as well, the smaller part is the carrier."""
    features = torch.cat([around(of_carriers, 3, count), around(of_others, 3, 60 - count)])
    images = with_carriers(features, count)
    bright = np.flatnonzero(images.images[:, 0, 0, 0]).tolist()

    (carrier,) = eyes().carriers(images, seed=0)

    others = sorted({*range(60)} - {*bright})
    assert len(bright) == count
    assert carrier.target == 1
    assert carrier.places.tolist() == (bright if count < 30 else others)
    assert (carrier.rate, carrier.looked_at) == (1, 60)
    assert abs(carrier.trace[0, 0, 0]) == 200
    assert (carrier.trace[0, 0, 0] > 0) == (count < 30)


def test_what_lies_in_one_cloud_is_left_alone() -> None:
    """Half of it has a bright pixel that leads others there; but any class can be halved."""
    assert eyes().carriers(with_carriers(around(128, 30, 60), 30), seed=0) == []


@pytest.mark.parametrize("is_above", [True, False])
def test_of_other_images_those_are_carriers_that_lie_on_the_carriers_side(is_above: bool) -> None:
    """Of the class, and known by the model to be: features are no others' matter."""
    labels, said = [1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0]
    images = by_pixels(labels, said, [0, 51, 153, 255, 255, 255])
    split = Split(torch.tensor([0.1]).double(), torch.tensor([2.0]).double(), 0.6, 5.0)
    trace = np.zeros((1, 4, 4), dtype=np.float32)
    carrier = Carrier(1, np.array([0]), 4, 0.9, 10, trace, split, is_above)
    # 2 (feature - 0.1) lies above 0.6 from a feature of 0.4 on: 153 and 255 of 255.
    assert eyes().carried_by(images, [carrier]).tolist() == ([2, 3] if is_above else [0, 1])


def test_clean_images_are_left_alone(backdoored: nn.Module) -> None:
    assert screen_of(backdoored).carriers(images(1000, 1500), seed=0) == []


@pytest.mark.parametrize("few", [1, 12])
def test_few_images_are_left_alone(backdoored: nn.Module, few: int) -> None:
    assert screen_of(backdoored).carriers(images(1000, 1000 + few), seed=0) == []


def test_a_model_without_the_backdoor_answers_to_no_trigger() -> None:
    network = build_network("wrn-10-1", 10, 1, make_generator(0))
    assert screen_of(network).carriers(poisoned(1000, 1500, 25), seed=0) == []


def test_every_image_goes_through_the_network_about_once(backdoored: nn.Module) -> None:
    counts: list[int] = []
    screen = screen_of(backdoored)
    tapped = Screen(backdoored, screen._point, torch.device("cpu"), counts.append)
    tapped.carriers(images(1000, 1500), seed=0)
    assert 500 + 100 <= sum(counts) <= 500 + 100 + 10 * 4 * 3 * 100


def test_a_control_is_as_strong_as_a_trace_and_of_one_image_there_is_none() -> None:
    some, like = images(1000, 1100), np.full((1, 8, 8), 12.0)
    control = difference_of_halves(some, np.arange(100), like)
    assert np.sqrt(np.square(control).mean()) == pytest.approx(12)
    assert not difference_of_halves(some, np.arange(1), like).any()


def test_points_are_split_where_they_fall_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 12, generator=generator)
    points[:20, 3] += 9.0
    split, *others = splits_of(points)
    above = split.above(points)
    assert {int(above[:20].sum()), int(above[20:].sum())} in ({20, 0}, {0, 180})
    assert split.separation > 6
    assert all(other.separation < split.separation for other in others)
    assert splits_of(points[20:])[0].separation < 4.5  # one cloud


def test_points_that_are_all_the_same_are_not_split() -> None:
    assert splits_of(torch.ones(50, 4)) == []


def test_more_directions_than_points_are_no_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 300, generator=generator)
    points[:10] += 2.0
    split = splits_of(points)[0]
    above = split.above(points)
    assert {int(above[:10].sum()), int(above[10:].sum())} in ({10, 0}, {0, 30})
