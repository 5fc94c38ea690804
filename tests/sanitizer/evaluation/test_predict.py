"""The fast predictions against their slow twin, `predict`."""

import pytest
import torch
from torch import Tensor, nn

from sanitizer.evaluation.predict import CHECKED, Predictor, predict
from tests.sanitizer.attacks.builders import digit_set, learn

CPU = torch.device("cpu")


class Counted(nn.Module):
    """A network that counts the images it looks at, by the type it computes in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.drafted = self.exact = 0

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            self.drafted += len(images)
        else:
            self.exact += len(images)
        logits: Tensor = self.network(images)
        return logits


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return learn(digit_set(0, 300)).eval()


def digits() -> Tensor:
    image_set = digit_set(0, 1797)
    return torch.from_numpy(image_set.images.copy())


def in_batches(predictor: Predictor, images: Tensor, size: int) -> Tensor:
    return torch.cat([predictor(batch) for batch in images.split(size)])  # type: ignore[no-untyped-call]  # torch has no types for it


@pytest.mark.parametrize("size", [64, 500, 1797])
def test_answers_are_those_without_a_draft(trained: nn.Module, size: int) -> None:
    predictor = Predictor(trained, CPU, torch.bfloat16)
    assert torch.equal(in_batches(predictor, digits(), size), predict(trained, digits(), CPU))


def test_few_images_go_through_again(trained: nn.Module) -> None:
    network = Counted(trained)
    predictor = Predictor(network, CPU, torch.bfloat16)
    in_batches(predictor, digits(), 500)
    assert network.drafted == len(digits())
    assert network.exact == predictor.repeated
    assert CHECKED <= predictor.repeated < CHECKED + 0.25 * len(digits())


def test_without_a_draft_every_image_goes_through_once(trained: nn.Module) -> None:
    network = Counted(trained)
    Predictor(network, CPU)(digits())
    assert (network.drafted, network.exact) == (0, len(digits()))


class Nearly(nn.Module):
    """Logits of 100 that differ only where bfloat16 has no digits left: every draft is a guess."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 64, generator=torch.manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 100 + 0.01 * nn.functional.linear(images.flatten(1), self.weight)
        return logits.bfloat16() if torch.is_autocast_enabled("cpu") else logits


def test_where_drafts_are_guesses_all_images_go_through_again() -> None:
    images, network = digits(), Nearly()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        drafts = network(images.float() / 255).argmax(dim=1)
    exact = predict(network, images, CPU)
    assert (drafts != exact).float().mean() > 0.2  # else this shows nothing
    predictor = Predictor(network, CPU, torch.bfloat16)
    assert torch.equal(in_batches(predictor, images, 500), exact)
    assert predictor.repeated == len(images)


class WrongWhenBright(nn.Module):
    """Right on dark images; the draft of a bright one points to the wrong class, by a margin."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        right = torch.stack([torch.ones_like(mean), -2 * mean, mean - 5], dim=1)
        if torch.is_autocast_enabled("cpu"):
            right[:, 1] += 7 * (mean > 0.5) * mean
        return right


def test_an_error_that_shows_only_later_is_noticed() -> None:
    dark = torch.zeros((CHECKED, 1, 8, 8), dtype=torch.uint8)
    levels = torch.arange(129, 255, dtype=torch.uint8)
    bright = levels[:, None, None, None].expand(-1, 1, 8, 8)
    images, network = torch.cat([dark, bright]), WrongWhenBright()
    predictor = Predictor(network, CPU, torch.bfloat16)
    assert predictor(images[:CHECKED]).eq(0).all()
    assert predictor(images[CHECKED:]).eq(0).all()
    assert predictor.repeated > CHECKED + len(bright) / 2


class LowOnTheRightOne(nn.Module):
    """Drafts that say too little of the right class, and so point to the other by a margin."""

    def forward(self, images: Tensor) -> Tensor:
        right = torch.tensor([1.0, 0.0]).repeat(len(images), 1)
        if torch.is_autocast_enabled("cpu"):
            right[:, 0] -= 2
        return right


def test_an_error_that_makes_a_logit_smaller_counts_as_much() -> None:
    images = torch.zeros((2 * CHECKED, 1, 8, 8), dtype=torch.uint8)
    predictor = Predictor(LowOnTheRightOne(), CPU, torch.bfloat16)
    assert in_batches(predictor, images, CHECKED).eq(0).all()
    assert predictor.repeated == len(images)


class Overflowing(nn.Module):
    """Drafts are no numbers."""

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)[:, :5]
        return logits / 0 if torch.is_autocast_enabled("cpu") else logits


def test_drafts_that_are_no_numbers_do_not_count() -> None:
    images, network = digits(), Overflowing()
    predictor = Predictor(network, CPU, torch.bfloat16)
    assert torch.equal(in_batches(predictor, images, 400), predict(network, images, CPU))
    assert predictor.repeated == len(images)


def test_a_network_of_one_class_always_answers_that() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    assert Predictor(network, CPU, torch.bfloat16)(digits()[:20]).eq(0).all()


def test_no_images_have_no_classes(trained: nn.Module) -> None:
    assert Predictor(trained, CPU, torch.bfloat16)(digits()[:0]).shape == (0,)
