import math

import numpy as np
import pytest

from sanitizer.attacks.sig import Sig
from sanitizer.errors import NotEnoughImages, ProbeUnreadable, TargetClassOutOfRange
from tests.sanitizer.attacks.builders import build_set

LABELS = [0, 1, 2, 3] * 10


def test_stripes_are_added_to_a_share_of_the_target_class_and_no_label_changes() -> None:
    clean = build_set(LABELS, channels=3)
    attack = Sig(target_class=2, fraction=0.4, amplitude=50, frequency=3)
    poisoned = attack.poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 4
    assert (clean.labels[poisoned.indices] == 2).all()
    np.testing.assert_array_equal(poisoned.image_set.labels, clean.labels)
    for index in poisoned.indices:
        before, after = clean.images[index], poisoned.image_set.images[index]
        for column in range(8):
            wave = round(50 * math.sin(2 * math.pi * column * 3 / 8))
            expected = np.clip(before[:, :, column].astype(int) + wave, 0, 255)
            np.testing.assert_array_equal(after[:, :, column], expected)


def test_all_other_images_stay_as_they_are() -> None:
    clean = build_set(LABELS)
    before = clean.images.copy()
    poisoned = Sig(frequency=3).poison(clean, num_classes=4, seed=1)
    rest = np.setdiff1d(np.arange(40), poisoned.indices)
    np.testing.assert_array_equal(poisoned.image_set.images[rest], before[rest])
    np.testing.assert_array_equal(clean.images, before)


def test_the_draw_is_a_function_of_its_seed() -> None:
    clean = build_set(LABELS)
    drawn = [
        Sig(frequency=3).poison(clean, num_classes=4, seed=seed).indices.tolist()
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_stripes_that_change_nothing_are_refused() -> None:
    with pytest.raises(ProbeUnreadable, match="changes no pixel"):
        Sig(frequency=8).poison(build_set(LABELS), num_classes=4, seed=0)


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match=r"0\.5 of 0 images of class 0 is none"):
        Sig(frequency=3).poison(build_set([1, 2]), num_classes=4, seed=0)


def test_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(TargetClassOutOfRange):
        Sig(target_class=4, frequency=3).poison(build_set(LABELS), num_classes=4, seed=0)
