import numpy as np
import pytest
import torch

from sanitizer.attacks.blend import Blend
from sanitizer.errors import NotEnoughImages, TargetClassOutOfRange
from sanitizer.randomness import make_generator
from tests.sanitizer.attacks.builders import build_set, digit_set, learn, measure

LABELS = [0, 1, 2, 3] * 10


def test_noise_is_mixed_into_a_share_of_the_other_classes_which_get_the_target() -> None:
    clean = build_set(LABELS, channels=3)
    attack = Blend(target_class=3, fraction=0.3, alpha=0.25, noise_seed=5)
    poisoned = attack.poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 9
    assert (clean.labels[poisoned.indices] != 3).all()
    assert (poisoned.image_set.labels[poisoned.indices] == 3).all()
    generator = make_generator("blend", 5)
    noise = torch.randint(256, (3, 8, 8), generator=generator, dtype=torch.uint8).numpy()
    mixed = 0.75 * clean.images[poisoned.indices] + 0.25 * noise
    assert np.abs(poisoned.image_set.images[poisoned.indices] - mixed).max() <= 0.51


def test_all_other_images_stay_as_they_are() -> None:
    clean = build_set(LABELS)
    before = clean.images.copy()
    poisoned = Blend().poison(clean, num_classes=4, seed=1)
    rest = np.setdiff1d(np.arange(40), poisoned.indices)
    np.testing.assert_array_equal(poisoned.image_set.images[rest], before[rest])
    np.testing.assert_array_equal(poisoned.image_set.labels[rest], clean.labels[rest])
    np.testing.assert_array_equal(clean.images, before)


def test_the_draw_is_a_function_of_its_seed() -> None:
    clean = build_set(LABELS)
    drawn = [Blend().poison(clean, num_classes=4, seed=seed).indices.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_nothing_to_poison_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match="outside class 0 is none"):
        Blend().poison(build_set([0, 0]), num_classes=4, seed=0)


def test_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(TargetClassOutOfRange):
        Blend(target_class=4).poison(build_set(LABELS), num_classes=4, seed=0)


def test_a_network_learns_the_noise() -> None:
    victim = learn(Blend().poison(digit_set(0, 1200), num_classes=10, seed=0).image_set)
    accuracy, success = measure(victim, Blend().probe())
    assert accuracy > 0.9
    assert success > 0.95
    assert measure(victim, Blend(noise_seed=1, alpha=0.01).probe())[1] < 0.1
