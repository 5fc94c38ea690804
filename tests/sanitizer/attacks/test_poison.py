import numpy as np
import pytest
import torch

from sanitizer.attacks.badnets import BadNets
from sanitizer.attacks.poison import poison, poison_own_class
from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.spec import PatchProbe


def build_set(labels: list[int]) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 200, (len(labels), 1, 8, 8), dtype=np.uint8)
    return ImageSet.from_arrays(images, np.array(labels))


def build_trigger(target_class: int = 0) -> Trigger:
    probe = PatchProbe(target_class=target_class, row=-1, column=-1, pixels=[[255]])
    return make_trigger(probe, input_size=(8, 8), channels=1, num_classes=4)


def test_a_share_of_the_other_classes_gets_trigger_and_target() -> None:
    clean, trigger = build_set([0, 1, 2, 3] * 10), build_trigger()
    poisoned = poison(clean, trigger, 0.2, 1)
    assert len(poisoned.indices) == 6
    assert poisoned.indices.tolist() == sorted(set(poisoned.indices.tolist()))
    assert (clean.labels[poisoned.indices] != 0).all()
    assert (poisoned.image_set.labels[poisoned.indices] == 0).all()
    expected = trigger.apply(torch.from_numpy(clean.read(poisoned.indices))).numpy()
    np.testing.assert_array_equal(poisoned.image_set.images[poisoned.indices], expected)


def test_all_other_images_stay_as_they_are() -> None:
    clean = build_set([0, 1, 2, 3] * 10)
    poisoned = poison(clean, build_trigger(), 0.2, 1)
    rest = np.setdiff1d(np.arange(40), poisoned.indices)
    np.testing.assert_array_equal(poisoned.image_set.images[rest], clean.images[rest])
    np.testing.assert_array_equal(poisoned.image_set.labels[rest], clean.labels[rest])


def test_the_clean_set_is_left_alone() -> None:
    clean = build_set([0, 1, 2, 3] * 10)
    images, labels = clean.images.copy(), clean.labels.copy()
    poison(clean, build_trigger(), 1, 1)
    np.testing.assert_array_equal(clean.images, images)
    np.testing.assert_array_equal(clean.labels, labels)


def test_the_draw_is_a_function_of_its_seed() -> None:
    clean = build_set([0, 1, 2, 3] * 10)
    drawn = [poison(clean, build_trigger(), 0.2, seed).indices.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_share_that_is_no_image_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match=r"0\.1 of 3 images outside class 0 is none"):
        poison(build_set([0, 1, 2, 3]), build_trigger(), 0.1, 1)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        poison(build_set([0, 1]), build_trigger(), fraction, 1)


def test_a_share_of_the_target_class_gets_the_trigger_and_keeps_its_labels() -> None:
    clean, trigger = build_set([0, 1, 2, 3] * 10), build_trigger(2)
    poisoned = poison_own_class(clean, trigger, 0.4, 1)
    assert len(poisoned.indices) == 4
    assert (clean.labels[poisoned.indices] == 2).all()
    np.testing.assert_array_equal(poisoned.image_set.labels, clean.labels)
    expected = clean.images.copy()
    expected[poisoned.indices, 0, 7, 7] = 255
    np.testing.assert_array_equal(poisoned.image_set.images, expected)


def test_a_target_class_without_images_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match="of 0 images of class 2 is none"):
        poison_own_class(build_set([0, 1]), build_trigger(2), 1, 1)


def test_badnets_puts_its_grid_near_the_bottom_right_corner() -> None:
    poisoned = BadNets(target_class=2).poison(build_set([0, 1, 2, 3] * 10), num_classes=4, seed=1)
    assert len(poisoned.indices) == 3
    for image in poisoned.image_set.images[poisoned.indices]:
        assert image[0, 3:6, 3:6].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert (poisoned.image_set.labels[poisoned.indices] == 2).all()
