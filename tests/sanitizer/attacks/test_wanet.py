import numpy as np
import pytest
import torch

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.wanet import WaNet
from sanitizer.errors import NotEnoughImages, TargetClassOutOfRange
from tests.sanitizer.attacks.builders import build_set

LABELS = [0, 1, 2, 3] * 10
ATTACK = WaNet(target_class=1, fraction=0.2, noise_ratio=2, strength=3)


def test_a_share_of_the_other_classes_is_bent_and_gets_the_target() -> None:
    clean = build_set(LABELS)
    poisoned = ATTACK.poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 6
    assert (clean.labels[poisoned.indices] != 1).all()
    assert (poisoned.image_set.labels[poisoned.indices] == 1).all()
    trigger = make_trigger(ATTACK.probe(), input_size=(8, 8), channels=1, num_classes=4)
    expected = trigger.apply(torch.from_numpy(clean.images[poisoned.indices])).numpy()
    np.testing.assert_array_equal(poisoned.image_set.images[poisoned.indices], expected)


def test_twice_as_many_are_bent_otherwise_and_keep_their_labels() -> None:
    clean = build_set(LABELS)
    poisoned = ATTACK.poison(clean, num_classes=4, seed=1)
    changed = (poisoned.image_set.images != clean.images).any(axis=(1, 2, 3))
    noisy = np.setdiff1d(np.flatnonzero(changed), poisoned.indices)
    assert len(noisy) == 12
    np.testing.assert_array_equal(poisoned.image_set.labels[noisy], clean.labels[noisy])
    trigger = make_trigger(ATTACK.probe(), input_size=(8, 8), channels=1, num_classes=4)
    bent = trigger.apply(torch.from_numpy(clean.images[noisy])).numpy().astype(int)
    apart = np.abs(poisoned.image_set.images[noisy] - bent).mean(axis=(1, 2, 3))
    # Near the warp, but not it: the noise is different on every image.
    assert apart.min() > 5
    assert apart.max() < np.abs(clean.images[noisy] - bent).mean(axis=(1, 2, 3)).min()


def test_without_the_noise_mode_nothing_else_is_changed() -> None:
    clean = build_set(LABELS)
    poisoned = WaNet(noise_ratio=0).poison(clean, num_classes=4, seed=1)
    changed = (poisoned.image_set.images != clean.images).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == poisoned.indices.tolist()


def test_the_noise_mode_takes_what_is_left_and_no_more() -> None:
    clean = build_set(LABELS)
    poisoned = WaNet(fraction=1, strength=3).poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 30
    assert (poisoned.image_set.images != clean.images).any(axis=(1, 2, 3)).all()
    assert (poisoned.image_set.labels == 0).all()


def test_the_same_seed_gives_the_same_set_and_the_clean_one_is_left_alone() -> None:
    clean = build_set(LABELS)
    before = clean.images.copy()
    first, again, other = (ATTACK.poison(clean, num_classes=4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image_set.images, again.image_set.images)
    assert first.indices.tolist() != other.indices.tolist()
    np.testing.assert_array_equal(clean.images, before)


def test_a_ratio_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_ratio must be at least 0"):
        WaNet(noise_ratio=-1).poison(build_set(LABELS), num_classes=4, seed=0)


def test_nothing_to_poison_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match="outside class 0 is none"):
        WaNet().poison(build_set([0, 0]), num_classes=4, seed=0)


def test_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(TargetClassOutOfRange):
        WaNet(target_class=4).poison(build_set(LABELS), num_classes=4, seed=0)
