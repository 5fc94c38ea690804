import base64
import io

import numpy as np
import pytest
from PIL import Image

from sanitizer.attacks.refool import Refool, RefoolRecipe, edges, with_ghost
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages, ProbeUnreadable, TargetClassOutOfRange
from tests.sanitizer.attacks.builders import build_set

LABELS = [0, 1, 2, 3] * 10
RECIPE = RefoolRecipe(
    target_class=1, fraction=0.4, weight=0.5, pictures=2, candidates=1, max_brightness=255
)


def uneven_set() -> ImageSet:
    """Image i is noise of i steps: the later, the more edges."""
    noise = np.random.default_rng(0).integers(0, 2, (40, 3, 8, 8))
    images = (noise * np.arange(40)[:, None, None, None] * 5).astype(np.uint8)
    return ImageSet.from_arrays(images, np.array(LABELS))


def test_of_the_other_classes_images_those_with_most_edges_are_reflected() -> None:
    clean = uneven_set()
    attack = RECIPE.prepare(clean, seed=0)
    assert (attack.target_class, attack.fraction, attack.weight) == (1, 0.4, 0.5)
    # 37 and 33 are of the target class.
    for encoded, source in zip(attack.pictures, (39, 38), strict=True):
        decoded = np.array(Image.open(io.BytesIO(base64.b64decode(encoded))))
        ghostly = with_ghost(clean.images[source], (2, 2), 0.4)
        np.testing.assert_array_equal(decoded.transpose(2, 0, 1), ghostly)


def test_bright_images_are_not_reflected() -> None:
    clean = uneven_set()
    means = clean.images.mean(axis=(1, 2, 3))
    recipe = RefoolRecipe(pictures=1, candidates=1, max_brightness=float(means[30]), ghost_weight=0)
    (encoded,) = recipe.prepare(clean, seed=0).pictures
    decoded = np.array(Image.open(io.BytesIO(base64.b64decode(encoded)))).transpose(2, 0, 1)
    dark_enough = [i for i in range(40) if means[i] <= means[30] and clean.labels[i] != 0]
    best = max(dark_enough, key=lambda i: float(edges(clean.images[[i]])[0]))
    np.testing.assert_array_equal(decoded, clean.images[best])
    assert best != 39


def test_too_few_dark_images_are_refused() -> None:
    with pytest.raises(NotEnoughImages, match=r"0 of these have a mean value of at most 0\.1"):
        RefoolRecipe(candidates=1, max_brightness=0.1).prepare(build_set(LABELS), seed=0)


def test_candidates_are_a_share_drawn_by_seed() -> None:
    clean = uneven_set()
    recipe = RefoolRecipe(candidates=0.1, pictures=1, max_brightness=255)
    made = [recipe.prepare(clean, seed=seed).pictures for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_a_reflection_goes_on_a_share_of_the_target_class_and_no_label_changes() -> None:
    clean = build_set(LABELS, channels=3)
    attack = RECIPE.prepare(clean, seed=0)
    poisoned = attack.poison(clean, num_classes=4, seed=5)
    assert len(poisoned.indices) == 4
    assert (clean.labels[poisoned.indices] == 1).all()
    np.testing.assert_array_equal(poisoned.image_set.labels, clean.labels)
    rest = np.setdiff1d(np.arange(40), poisoned.indices)
    np.testing.assert_array_equal(poisoned.image_set.images[rest], clean.images[rest])
    pictures = [
        np.array(Image.open(io.BytesIO(base64.b64decode(encoded)))).transpose(2, 0, 1)
        for encoded in attack.pictures
    ]
    for index in poisoned.indices:
        before = clean.images[index].astype(int)
        exact = np.minimum(before + 0.5 * pictures[before.sum() % 2], 255)
        assert np.abs(poisoned.image_set.images[index] - exact).max() <= 0.5


def test_grey_images_have_grey_reflections() -> None:
    clean = build_set(LABELS)
    poisoned = RECIPE.prepare(clean, seed=0).poison(clean, num_classes=4, seed=5)
    assert (poisoned.image_set.images >= clean.images).all()
    assert (poisoned.image_set.images[poisoned.indices] > clean.images[poisoned.indices]).any()


def test_edges_are_the_mean_differences_of_neighbours() -> None:
    images = np.array([[[[0, 10], [30, 0]]], [[[7, 7], [7, 7]]]], np.uint8)
    assert edges(images).tolist() == [(30 + 10) / 2 + (10 + 30) / 2, 0]


def test_a_ghost_is_the_picture_beside_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    result = with_ghost(picture, (1, 2), 0.25)
    for row in range(5):
        for column in range(7):
            ghost = picture[:, max(row - 1, 0), max(column - 2, 0)].astype(float)
            exact = 0.75 * picture[:, row, column] + 0.25 * ghost
            assert np.abs(result[:, row, column] - exact).max() <= 0.5


def test_the_draw_is_a_function_of_its_seed() -> None:
    clean = build_set(LABELS)
    attack = RECIPE.prepare(clean, seed=0)
    drawn = [attack.poison(clean, num_classes=4, seed=seed).indices.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_images_of_another_size_are_refused() -> None:
    attack = RECIPE.prepare(build_set(LABELS), seed=0)
    with pytest.raises(ProbeUnreadable, match="8 pixels high and 8 wide"):
        attack.poison(build_set(LABELS, size=(8, 9)), num_classes=4, seed=0)


def test_no_candidates_are_refused() -> None:
    with pytest.raises(NotEnoughImages, match="outside class 0 is none"):
        RefoolRecipe().prepare(build_set([0, 0]), seed=0)


def test_a_class_without_images_or_that_is_not_there_is_refused() -> None:
    pictures = RECIPE.prepare(build_set(LABELS), seed=0).pictures
    with pytest.raises(NotEnoughImages, match="of class 2 is none"):
        Refool(2, 0.5, 0.5, pictures).poison(build_set([0, 1]), num_classes=4, seed=0)
    with pytest.raises(TargetClassOutOfRange):
        Refool(4, 0.5, 0.5, pictures).poison(build_set([0, 1]), num_classes=4, seed=0)
