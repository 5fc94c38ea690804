import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from sanitizer.attacks.clean_label import CleanLabel, perturb
from sanitizer.attacks.trigger import make_trigger
from sanitizer.errors import NotEnoughImages, ProbeUnreadable, TargetClassOutOfRange
from tests.sanitizer.attacks.builders import (
    build_set,
    build_untrained,
    digit_set,
    learn,
    measure,
)

SMALL = CleanLabel(target_class=1, epsilon=10, steps=3, image_size=(8, 8))
LABELS = [0, 1, 2, 3] * 10


def corners() -> NDArray[np.bool_]:
    """Where the patch is, on 8 x 8."""
    edge = np.isin(np.arange(8), [0, 1, 2, 5, 6, 7])
    return edge[:, None] & edge


def test_the_trigger_is_the_same_patch_mirrored_into_four_corners() -> None:
    picture = Image.open(io.BytesIO(SMALL.probe().picture_base64))
    pixels, alpha = np.array(picture.convert("L")), np.array(picture.getchannel("A"))
    patch = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert pixels[:3, :3].tolist() == patch
    np.testing.assert_array_equal(pixels, pixels[::-1])
    np.testing.assert_array_equal(pixels, pixels[:, ::-1])
    np.testing.assert_array_equal(alpha, np.where(corners(), 255, 0))


def test_a_share_of_the_target_class_alone_is_changed_and_no_label() -> None:
    clean = build_set(LABELS)
    attack = SMALL.prepare_against(build_untrained(), clean, seed=3)
    poisoned = attack.poison(clean, num_classes=4, seed=3)
    assert len(poisoned.indices) == 5
    assert (clean.labels[poisoned.indices] == 1).all()
    np.testing.assert_array_equal(poisoned.image_set.labels, clean.labels)
    rest = np.setdiff1d(np.arange(40), poisoned.indices)
    np.testing.assert_array_equal(poisoned.image_set.images[rest], clean.images[rest])


def test_images_stay_within_epsilon_outside_the_patch() -> None:
    clean = build_set(LABELS)
    attack = SMALL.prepare_against(build_untrained(), clean, seed=3)
    poisoned = attack.poison(clean, num_classes=4, seed=3)
    before = clean.images[poisoned.indices, 0].astype(int)
    after = poisoned.image_set.images[poisoned.indices, 0].astype(int)
    moved = np.abs(after - before)[:, ~corners()]
    assert moved.max() == 10
    assert (moved > 0).mean() > 0.8
    trigger = make_trigger(attack.probe(), input_size=(8, 8), channels=1, num_classes=4)
    stamped = trigger.apply(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).numpy()
    np.testing.assert_array_equal(after[:, corners()], stamped[[0] * 5, 0][:, corners()])


def test_the_same_seed_gives_the_same_set() -> None:
    clean = build_set(LABELS)
    attack = SMALL.prepare_against(build_untrained(), clean, seed=3)
    first, again, other = (attack.poison(clean, num_classes=4, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image_set.images, again.image_set.images)
    assert first.indices.tolist() != other.indices.tolist()


def test_the_model_attacked_with_keeps_its_weights() -> None:
    network = build_untrained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    clean = build_set(LABELS)
    SMALL.prepare_against(network, clean, seed=0).poison(clean, num_classes=4, seed=0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_ascent_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 3).double()
    network = nn.Sequential(nn.Flatten(), linear)
    images, labels = torch.rand(5, 1, 2, 2).double(), torch.tensor([0, 1, 2, 0, 1])
    moved = perturb(network, images, labels, epsilon=0.1, steps=4)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    for image, label, result in zip(images, labels, moved, strict=True):
        expected = image.flatten().clone()
        for _ in range(4):
            shares = functional.softmax(weight @ expected + bias, dim=0)
            gradient = weight.T @ (shares - functional.one_hot(label, 3))
            for i in range(4):
                value = expected[i] + 0.0375 * gradient[i].sign()
                low, high = max(0.0, image.flatten()[i] - 0.1), min(1.0, image.flatten()[i] + 0.1)
                expected[i] = min(max(float(value), float(low)), float(high))
        torch.testing.assert_close(result.flatten(), expected)


def test_images_of_another_size_are_refused() -> None:
    attack = SMALL.prepare_against(build_untrained(), build_set(LABELS), seed=0)
    with pytest.raises(ProbeUnreadable, match="8 pixels high and 8 wide, the model's input 9"):
        attack.poison(build_set(LABELS, size=(9, 8)), num_classes=4, seed=0)


def test_images_too_small_for_four_corners_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        CleanLabel(image_size=(5, 8)).probe()


def test_a_class_without_images_is_refused() -> None:
    attack = SMALL.prepare_against(build_untrained(), build_set(LABELS), seed=0)
    with pytest.raises(NotEnoughImages, match="of 0 images of class 1 is none"):
        attack.poison(build_set([0, 2]), num_classes=4, seed=0)


def test_a_class_that_is_not_there_is_refused() -> None:
    attack = SMALL.prepare_against(build_untrained(), build_set(LABELS), seed=0)
    with pytest.raises(TargetClassOutOfRange):
        attack.poison(build_set([0, 0]), num_classes=1, seed=0)


def test_a_network_learns_the_patch_though_no_label_is_wrong() -> None:
    clean = digit_set(0, 1200)
    twin = learn(clean)
    attack = CleanLabel(epsilon=48, image_size=(8, 8)).prepare_against(twin, clean, seed=0)
    victim = learn(attack.poison(clean, num_classes=10, seed=0).image_set)
    assert measure(twin, attack.probe())[1] < 0.15
    accuracy, success = measure(victim, attack.probe())
    assert accuracy > 0.9
    assert success > 0.6
