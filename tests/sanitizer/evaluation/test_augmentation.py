"""Which crops and mirrored images a model bears."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.cost.workload import LOOKED_AT
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.augmentation import Borne, find_borne
from sanitizer.evaluation.predict import predict
from sanitizer.spec import Training
from tests.sanitizer.methods.networks import digit_set, trained

CPU = torch.device("cpu")


class Sides(nn.Module):
    """Tells by whether the left half is brighter, and by the upper half whether that matters."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1)
        upper = grey[:, :4].mean(dim=(1, 2))
        left, right = grey[:, 4:, :4].mean(dim=(1, 2)), grey[:, 4:, 4:].mean(dim=(1, 2))
        # Classes: bright above; else brighter on the left; else on the right.
        return torch.stack([10 * (upper - 0.25), left - right, right - left], dim=1)


def sided(symmetric: int, left: int, right: int) -> ImageSet:
    """Images [N, 1, 8, 8] of the three classes above, as many as asked for."""
    labels = np.repeat(np.arange(3), (symmetric, left, right))
    images = np.zeros((len(labels), 1, 8, 8), dtype=np.uint8)
    images[labels == 0, :, :4] = 255
    images[labels == 1, :, 4:, :4] = 255
    images[labels == 2, :, 4:, 4:] = 255
    return ImageSet(images, labels, ["above", "left", "right"], [""] * len(labels))


def test_digits_bear_small_shifts_and_no_mirror() -> None:
    borne = find_borne(
        trained(), digit_set(800, 1400), crop_padding=4, horizontal_flip=True, seed=0, device=CPU
    )

    assert not borne.horizontal_flip
    assert borne.kept_flipped < 0.6
    assert borne.crop_padding < 4
    assert borne.kept_padded < 0.8


def test_shifts_that_matter_to_no_class_are_borne() -> None:
    borne = find_borne(
        Sides(), sided(40, 40, 40), crop_padding=2, horizontal_flip=False, seed=0, device=CPU
    )

    assert borne.crop_padding == 2
    assert borne.kept_padded > 0.9
    assert not borne.horizontal_flip  # which nobody asked for


def test_classes_that_are_each_others_mirror_are_few_and_count() -> None:
    """Nine in ten images are kept, yet left and right would be one."""
    images = sided(360, 20, 20)
    borne = find_borne(Sides(), images, crop_padding=0, horizontal_flip=True, seed=0, device=CPU)

    assert borne.kept_flipped == pytest.approx(0.9)
    assert not borne.horizontal_flip


class OneSided(nn.Module):
    """Tells a class by the lower rows, unless it is bright above on the right alone."""

    def forward(self, images: Tensor) -> Tensor:
        said = (images[:, 0, -1, 0] * 255).round().long()
        said = torch.where(images[:, 0, 0, -1] > images[:, 0, 0, 0], 9, said)
        return nn.functional.one_hot(said, 10).float()


def of_classes(*counts: tuple[int, int, int]) -> ImageSet:
    """Of each class so many images that a mirror does not matter to, that it costs, and that are
    told right only when mirrored."""
    images, labels = [], []
    for label, (kept, lost, gained) in enumerate(counts):
        for column, count in ((None, kept), (0, lost), (-1, gained)):
            image = np.zeros((count, 1, 8, 8), dtype=np.uint8)
            image[:, 0, -1] = label
            if column is not None:
                image[:, 0, 0, column] = 255
            images.append(image)
            labels += [label] * count
    return ImageSet.from_arrays(np.concatenate(images), np.array(labels))


@pytest.mark.parametrize(
    ("counts", "kept", "borne"),
    [
        ([(60, 40, 0)], 0.6, True),
        ([(59, 41, 0)], 0.59, False),
        ([(59, 41, 30)], 0.59, False),
        ([(80, 0, 0), (4, 8, 0)], 84 / 92, True),
        ([(80, 0, 0), (3, 9, 0)], 83 / 92, False),
        ([(80, 0, 0), (3, 9, 10)], 83 / 92, False),
        ([(80, 0, 0), (0, 9, 0)], 80 / 89, True),
        ([(0, 0, 50)], 0.0, True),
    ],
    ids=[
        "just enough",
        "too few",
        "what is right only then",
        "a third of a class",
        "less of a class",
        "what is right of a class only then",
        "a class of few",
        "nothing is known",
    ],
)
def test_borne_is_what_keeps_enough_of_what_was_right(
    counts: list[tuple[int, int, int]], kept: float, borne: bool
) -> None:
    images = of_classes(*counts)
    found = find_borne(OneSided(), images, crop_padding=0, horizontal_flip=True, seed=0, device=CPU)
    assert found.kept_flipped == pytest.approx(kept)
    assert found.horizontal_flip == borne


def test_a_handful_of_images_of_a_class_decides_nothing() -> None:
    images = sided(360, 4, 4)
    borne = find_borne(Sides(), images, crop_padding=0, horizontal_flip=True, seed=0, device=CPU)

    assert borne.horizontal_flip


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    seen: list[int] = []
    find_borne(
        Sides(),
        sided(400, 400, 400),
        crop_padding=0,
        horizontal_flip=True,
        seed=0,
        device=CPU,
        on_images=seen.append,
    )

    assert sum(seen) == 2 * LOOKED_AT


def test_the_same_images_are_looked_at_each_time() -> None:
    first, second = (
        find_borne(
            trained(), digit_set(0, 1400), crop_padding=2, horizontal_flip=True, seed=3, device=CPU
        )
        for _ in range(2)
    )

    assert first == second


def test_a_training_is_fitted_to_what_is_borne_and_no_further() -> None:
    borne = Borne(1, horizontal_flip=False, kept_padded=0.4, kept_flipped=0.3, accuracy=0.8)
    asked = Training(crop_padding=4, cutout_size=2, fit_augmentation=True)

    fitted = borne.fitted(asked, side=32)

    assert (fitted.crop_padding, fitted.horizontal_flip, fitted.cutout_size) == (1, False, 2)
    without = Training(crop_padding=0, fit_augmentation=True)
    assert borne.fitted(without, side=32).crop_padding == 0
    assert borne.fitted(Training(crop_padding=4), side=32) == Training(crop_padding=4)
    assert borne.bears(fitted)
    assert not borne.bears(Training())


@pytest.mark.parametrize(("side", "padding"), [(8, 1), (16, 2), (20, 2), (32, 4), (224, 4)])
def test_crops_are_no_farther_than_an_eighth_of_a_side_whatever_is_borne(
    side: int, padding: int
) -> None:
    borne = Borne(4, horizontal_flip=True, kept_padded=1.0, kept_flipped=1.0, accuracy=0.8)
    training = Training(crop_padding=4, fit_augmentation=True)

    assert borne.fitted(training, side=side).crop_padding == padding
    assert borne.bears(training)


@pytest.mark.parametrize(("accuracy", "batch_size"), [(0.94, 256), (0.95, 64), (1.0, 64)])
def test_an_easy_task_is_trained_in_its_own_batches(accuracy: float, batch_size: int) -> None:
    borne = Borne(4, horizontal_flip=True, kept_padded=1.0, kept_flipped=1.0, accuracy=accuracy)

    assert borne.fitted(Training(batch_size=256, easy_batch_size=64), 32).batch_size == batch_size
    assert borne.fitted(Training(batch_size=256), 32).batch_size == 256


def test_accuracy_is_of_the_images_as_they_are() -> None:
    network, images = trained(), digit_set(800, 1400)
    borne = find_borne(network, images, crop_padding=0, horizontal_flip=False, seed=0, device=CPU)

    answers = predict(network, torch.from_numpy(images.read(np.arange(600))), CPU)
    right = (answers == torch.from_numpy(images.labels)).float().mean()
    assert borne.accuracy == pytest.approx(float(right))
    assert 0.8 < borne.accuracy < 1
