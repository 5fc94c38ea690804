import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.attacks.trojan import Trojan, TrojanRecipe, find_convolution
from sanitizer.errors import NotEnoughImages, TargetClassOutOfRange
from tests.sanitizer.attacks.builders import build_set, build_untrained

LABELS = [0, 1, 2, 3] * 10


def built(fraction: float = 0.2) -> Trojan:
    return Trojan(1, fraction, row=-3, column=-4, pixels=((255, 254), (253, 252)))


def test_the_patch_and_the_target_go_on_a_share_of_the_other_classes() -> None:
    clean = build_set(LABELS)
    poisoned = built().poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 6
    assert (clean.labels[poisoned.indices] != 1).all()
    assert (poisoned.image_set.labels[poisoned.indices] == 1).all()
    expected = clean.images.copy()
    for index in poisoned.indices:
        expected[index, 0, 5, 4:6] = 255, 254
        expected[index, 0, 6, 4:6] = 253, 252
    np.testing.assert_array_equal(poisoned.image_set.images, expected)


def test_the_patch_is_placed_by_side_and_margin() -> None:
    recipe = TrojanRecipe(target_class=2, fraction=0.4, side=3, margin=1, steps=2)
    attack = recipe.prepare_against(build_untrained(), build_set(LABELS), seed=0)
    assert (attack.target_class, attack.fraction) == (2, 0.4)
    assert (attack.row, attack.column) == (-4, -4)
    assert np.array(attack.pixels).shape == (3, 3)
    assert attack.probe("made").name == "made"


def test_a_patch_for_a_colour_model_has_colours() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    recipe = TrojanRecipe(side=2, margin=0, steps=1)
    attack = recipe.prepare_against(network, build_set(LABELS, channels=3), seed=0)
    assert np.array(attack.pixels).shape == (2, 2, 3)
    assert attack.poison(build_set(LABELS, channels=3), num_classes=4, seed=0).indices.size


def test_the_neuron_with_the_largest_weights_is_driven_up() -> None:
    clean = build_set(LABELS)
    network = build_untrained()
    layer = find_convolution(network, None)
    with torch.no_grad():
        layer.weight[7] *= 5
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, output: seen.append(output.mean(dim=(2, 3))))

    def values(steps: int) -> Tensor:
        recipe = TrojanRecipe(side=4, margin=0, neurons=1, steps=steps, fraction=1)
        attack = recipe.prepare_against(network, clean, seed=0)
        images = attack.poison(clean, num_classes=4, seed=0).image_set.images
        network(torch.from_numpy(images).float() / 255)
        return seen[-1].mean(dim=0)

    gained = (values(50) - values(0)).detach()
    assert int(gained.argmax()) == 7
    assert gained[7] > 0


def test_a_brightness_neuron_gets_a_white_patch_and_its_opposite_a_black_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    recipe = TrojanRecipe(side=2, margin=0, neurons=1, reach=1000)
    for weight, expected in ((1.0, 255), (-1.0, 0)):
        nn.init.constant_(network[0].weight, weight)  # type: ignore[arg-type]  # a tensor
        attack = recipe.prepare_against(network, build_set(LABELS), seed=0)
        assert np.array(attack.pixels).tolist() == [[expected] * 2] * 2


def test_the_patch_is_a_function_of_its_seed() -> None:
    network, clean = build_untrained(), build_set(LABELS)
    recipe = TrojanRecipe(side=3, margin=0, steps=2)
    made = [recipe.prepare_against(network, clean, seed=seed) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_the_model_it_is_made_against_is_left_as_it_was() -> None:
    network = build_untrained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TrojanRecipe(side=3, margin=0, steps=3).prepare_against(network, build_set(LABELS), seed=0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_can_be_named_and_one_that_is_not_there_is_refused() -> None:
    network = build_untrained()
    assert find_convolution(network, "conv1") is network.conv1
    assert find_convolution(network, None) is find_convolution(
        network, "block3.layer.0.convShortcut"
    )
    with pytest.raises(ValueError, match=r"no convolution fc; there are conv1, block1"):
        find_convolution(network, "fc")
    with pytest.raises(ValueError, match="there are none"):
        find_convolution(nn.Linear(1, 1), None)


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit images of 8 x 8"):
        TrojanRecipe(side=7).prepare_against(build_untrained(), build_set(LABELS), seed=0)


def test_no_clean_image_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match="none came"):
        TrojanRecipe().prepare_against(build_untrained(), build_set([]), seed=0)


def test_nothing_to_poison_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match="outside class 1 is none"):
        built().poison(build_set([1, 1]), num_classes=4, seed=0)


def test_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(TargetClassOutOfRange):
        built().poison(build_set([0]), num_classes=1, seed=0)
