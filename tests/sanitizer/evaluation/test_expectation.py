"""Whether a model gets its images as it expects them, told by a few of them."""

import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.expectation import Expectation, find_expectation, match
from sanitizer.networks.normalized import NormalizedNetwork
from tests.sanitizer.methods.networks import digit_set, trained

CPU = torch.device("cpu")


class Expecting(nn.Module):
    """Knows digits, but takes them with a mean and a standard deviation of its own."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.known = trained()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.known(images * self.std + self.mean)
        return logits


class Reordered(nn.Module):
    """Knows digits, and calls digit `order[i]` its class i."""

    def __init__(self, network: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.known, self.order = network, order

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.known(images)[:, self.order]
        return logits


AS_IT_IS = list(range(10))
AS_TEXT = [0, 1, 3, 2, 4, 5, 6, 7, 9, 8]
BACKWARDS = list(reversed(range(10)))


def found(
    network: nn.Module, mean: float = 0.0, std: float = 1.0, images: ImageSet | None = None
) -> Expectation:
    return find_expectation(
        NormalizedNetwork(network, (mean,), (std,)),
        digit_set(0, 800) if images is None else images,
        num_classes=10,
        seed=0,
        device=CPU,
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5)])
def test_a_model_that_gets_what_it_expects_is_met(mean: float, std: float) -> None:
    expectation = found(Expecting(mean, std), mean, std)
    assert expectation.is_met
    assert expectation.right > 0.9 * expectation.images


@pytest.mark.parametrize(
    ("expected", "given"),
    [((0.5, 0.5), (0.0, 1.0)), ((0.0, 1.0), (0.5, 0.5)), ((0.0, 1 / 255), (0.0, 1.0))],
    ids=["forgotten", "needless", "bytes"],
)
def test_another_preparation_that_does_far_better_is_named(
    expected: tuple[float, float], given: tuple[float, float]
) -> None:
    expectation = found(Expecting(*expected), *given)
    assert expectation.better is not None
    (mean,), (std,) = expectation.better
    assert (mean, std) == pytest.approx(expected, abs=1e-4)
    assert expectation.order is None
    assert expectation.right < 0.8 * expectation.images < expectation.right_so


class LittleBetter(nn.Module):
    """Right of 70 in a hundred images as they are, of more if a half is subtracted and it is
    divided by a half."""

    def __init__(self, right_so: int) -> None:
        super().__init__()
        self.right_so = right_so

    def forward(self, images: Tensor) -> Tensor:
        prepared = images.amin(dim=(1, 2, 3)) < -0.5
        raw = torch.where(prepared[:, None, None, None], images / 2 + 0.5, images)
        label, number = ((raw[:, 0, 0, place] * 255).round().long() for place in (0, 1))
        is_right = number < torch.where(prepared, self.right_so, 70)
        return nn.functional.one_hot((label + 1 - is_right.long()) % 10, 10).float()


@pytest.mark.parametrize(("right_so", "is_met"), [(76, True), (100, False)])
def test_what_does_no_more_than_a_little_better_is_not_named(right_so: int, is_met: bool) -> None:
    numbers = torch.arange(1000)
    images = torch.zeros(1000, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 10, numbers // 10 % 100
    known = ImageSet.from_arrays(images.numpy(), (numbers % 10).numpy())
    expectation = found(LittleBetter(right_so), images=known)
    assert expectation.is_met == is_met
    assert (expectation.better == ((0.5,), (0.5,))) == (not is_met)


class ExpectingColours(nn.Module):
    """Knows digits in three colours, but takes each with a mean and a deviation of its own."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.known = trained()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        raw = images * self.get_buffer("std") + self.get_buffer("mean")
        # The farther the colours are apart, the less of a digit there is.
        logits: Tensor = self.known(raw.mean(dim=1, keepdim=True) + 4 * raw.std(dim=1)[:, None])
        return logits


def test_the_normalisation_of_photographs_is_tried_on_images_in_colour() -> None:
    grey = digit_set(0, 800)
    colours = ImageSet.from_arrays(grey.images.repeat(3, axis=1), grey.labels)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = NormalizedNetwork(ExpectingColours(mean, std), (0.0,) * 3, (1.0,) * 3)
    expectation = find_expectation(network, colours, num_classes=10, seed=0, device=CPU)
    assert expectation.better == (mean, std)


def test_the_figures_of_the_images_themselves_are_tried_too() -> None:
    images = digit_set(0, 800)
    pixels = torch.from_numpy(images.read(torch.arange(800).numpy())).float() / 255
    mean, std = float(pixels.mean()), float(pixels.std())
    expectation = found(Expecting(mean + 1.0, std), images=images)
    assert expectation.is_met  # nobody prepares images so, and nothing is named
    expectation = found(Expecting(mean, std), 0.5, 0.9, images)
    assert expectation.better is not None
    assert expectation.better[0] == pytest.approx((mean,), abs=0.03)


@pytest.mark.parametrize("order", [AS_TEXT, BACKWARDS], ids=["as text", "backwards"])
def test_another_order_of_the_outputs_is_named(order: list[int]) -> None:
    expectation = found(Reordered(trained(), order))
    assert expectation.order == tuple(order)
    assert expectation.better is None
    assert expectation.right_so > 0.9 * expectation.images > expectation.right


def test_both_faults_are_found_at_once() -> None:
    expectation = found(Reordered(Expecting(0.5, 0.5), BACKWARDS))
    assert expectation.better == ((0.5,), (0.5,))
    assert expectation.order == tuple(BACKWARDS)


def test_of_many_classes_what_is_plainly_right_decides() -> None:
    """Of a thousand classes nearly every image has one of its own, and any order suits it."""
    images = digit_set(0, 800)
    answers = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:64]
    order = match(answers, torch.arange(64), 1000)
    assert int((order[answers] == torch.arange(64)).sum()) == 64

    class Sparse(nn.Module):
        """Knows digits, in a normalisation of its own, among a thousand outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.known = Expecting(0.5, 0.5)

        def forward(self, given: Tensor) -> Tensor:
            return nn.functional.pad(self.known(given), (0, 990), value=-100.0)

    network = NormalizedNetwork(Sparse(), (0.0,), (1.0,))
    expectation = find_expectation(network, images, num_classes=1000, seed=0, device=CPU)
    assert expectation.better == ((0.5,), (0.5,))


def test_of_a_few_images_nothing_is_told() -> None:
    images = digit_set(0, 8)
    assert found(Reordered(trained(), BACKWARDS), images=images).is_met


def test_answers_that_go_astray_are_no_order() -> None:
    """A tenth of the images of each class are called class 3."""
    images = digit_set(0, 800)
    images.labels[::10] = 3
    expectation = found(trained(), images=images)
    assert expectation.is_met
    assert expectation.right < 0.95 * expectation.images


def test_outputs_that_nothing_speaks_for_keep_their_class_if_it_is_free() -> None:
    answers, labels = torch.tensor([2, 2, 2, 0]), torch.tensor([0, 0, 1, 2])
    assert match(answers, labels, 5).tolist() == [2, 1, 0, 3, 4]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert match(nothing, nothing, 3).tolist() == [0, 1, 2]
    # Of equally many its own comes first.
    assert match(torch.tensor([0, 0]), torch.tensor([1, 0]), 2).tolist() == [0, 1]
    # What is left over goes where there is room.
    assert match(torch.tensor([0, 0]), torch.tensor([1, 1]), 3).tolist() == [1, 0, 2]


def test_very_many_classes_take_no_table_of_all_pairs() -> None:
    answers = torch.arange(100) + 40_000
    order = match(answers, answers - 1, 50_000)
    assert sorted(order.tolist()) == list(range(50_000))
    assert order[40_050] == 40_049
