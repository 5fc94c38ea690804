from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.catalog import ARCHITECTURES
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.errors import InvalidSpec
from sanitizer.methods.fine_pruning import (
    FinePruneStep,
    _read,
    find_classifier,
    find_logits_layer,
    prune_idle_channels,
)
from sanitizer.methods.heldout import count_right, hold_out_clean
from sanitizer.methods.loop import train
from sanitizer.networks.normalized import NormalizedNetwork
from sanitizer.networks.registry import build_network, build_skeleton
from sanitizer.randomness import make_generator
from sanitizer.spec import Phase, Training
from tests.sanitizer.methods.networks import (
    digit_set,
    fresh,
    share_right,
    small_transformer,
    trained,
)

TRAINING = Training(
    phases=(Phase(epochs=2, learning_rate=0.05),),
    batch_size=32,
    horizontal_flip=False,
    crop_padding=0,
    cutout_size=0,
)
CLEAN = digit_set(0, 200)


def unheard(_images: int) -> None:
    pass


def silent_columns(network: nn.Module) -> list[int]:
    weight = find_classifier(network).reader.weight
    return weight.eq(0).all(dim=0).flatten().nonzero().flatten().tolist()


def plain_pruning(
    network: nn.Module, used: ImageSet, held: ImageSet, tolerance: float
) -> list[int]:
    """Channel after channel, each time with the whole network, from features taken by hand."""
    final = network.get_submodule("bn1")
    maps: list[Tensor] = []
    handle = final.register_forward_hook(lambda _m, _i, output: maps.append(output.clone()))
    with torch.no_grad():
        network(torch.from_numpy(used.images).float() / 255)
    handle.remove()
    order = maps[0].relu().mean(dim=(0, 2, 3)).argsort().tolist()
    classifier = network.get_submodule("fc")
    assert isinstance(classifier, nn.Linear)
    before = count_right(network, held, unheard)
    gone: list[int] = []
    for channel in order:
        with torch.no_grad():
            classifier.weight[:, channel] = 0
        if before - count_right(network, held, unheard) > tolerance * len(held):
            return gone
        gone.append(channel)
    raise AssertionError("the accuracy never fell")


def check_pruning(images: ImageSet, used: ImageSet, held: ImageSet, tolerance: float) -> None:
    network = trained()
    expected = plain_pruning(trained(), used, held, tolerance)
    figures = prune_idle_channels(network, images, unheard, tolerance, 0)
    assert silent_columns(network) == sorted(expected)
    assert figures["pruned_channels"] == len(expected) > 0
    assert figures["channels"] == 64
    assert figures["heldout_images"] == len(held)
    fallen = figures["heldout_accuracy_before"] - figures["heldout_accuracy"]
    assert fallen <= tolerance + 1e-9
    assert figures["heldout_accuracy"] == count_right(network, held, unheard) / len(held)


def test_channels_go_one_by_one_from_the_most_idle_until_the_accuracy_has_fallen() -> None:
    images = digit_set(0, 1000)
    used, held = hold_out_clean(images, 0)
    assert len(held) == 100
    check_pruning(images, used, held, 0.04)


@pytest.mark.parametrize("tolerance", [0.04, 0.3])
def test_of_few_images_all_say_how_many_channels_go(tolerance: float) -> None:
    check_pruning(CLEAN, CLEAN, CLEAN, tolerance)


def test_pruning_by_few_images_does_not_cost_most_of_the_accuracy() -> None:
    network = trained()
    before = share_right(network)
    prune_idle_channels(network, digit_set(800, 840), unheard, 0.04, 0)
    # By four of them 42 of 64 channels went, and 31 points with them.
    assert share_right(network) > before - 0.15


def test_pruning_touches_the_classifier_alone_and_counts_each_image_once() -> None:
    network = trained()
    before = deepcopy(network.state_dict())
    told: list[int] = []
    prune_idle_channels(network, CLEAN, told.append, 0.04, 0)
    changed = [n for n, value in network.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == ["fc.weight"]
    assert sum(told) == len(CLEAN)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_trained_network_keeps_its_accuracy_and_what_was_pruned_stays_zero() -> None:
    network = trained()
    before = share_right(network)
    prune_idle_channels(network, CLEAN, unheard, 0.04, 0)
    pruned = silent_columns(network)
    batches = Batches(CLEAN, TRAINING, 32, torch.device("cpu"), (0,))
    others = find_classifier(network).reader.weight.detach().clone()
    train(FinePruneStep(network), batches, TRAINING, (0,))
    assert silent_columns(network) == pruned != []
    assert not torch.equal(find_classifier(network).reader.weight, others)
    assert share_right(network) > before - 0.1


def test_after_an_update_a_pruned_channel_is_zero_again_and_no_other() -> None:
    network = trained()
    with torch.no_grad():
        find_classifier(network).reader.weight[:, 7] = 0
    step = FinePruneStep(network)
    with torch.no_grad():
        find_classifier(network).reader.weight.add_(1)
    step.updated()
    assert silent_columns(network) == [7]


def test_the_last_channel_is_never_taken() -> None:
    network = fresh()
    figures = prune_idle_channels(network, CLEAN, unheard, 1.0, 0)
    assert figures["pruned_channels"] == 63
    assert len(silent_columns(network)) == 63


def coloured(side: int) -> ImageSet:
    pixels = torch.randint(256, (4, 3, side, side), generator=make_generator(2))
    return ImageSet.from_arrays(pixels.numpy().astype(np.uint8), np.arange(4))


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("wrn-16-1", 64, 32),
        ("preact_resnet18", 512, 32),
        ("resnet18", 512, 32),
        ("mobilenet_v3_small", 576, 32),
        ("densenet121", 1024, 32),
        ("squeezenet1_1", 512, 64),
        ("convnext_tiny", 768, 32),
        ("swin_t", 768, 64),
        ("alexnet", 256, 64),
    ],
)
def test_the_classifier_alone_gives_the_logits_of_the_network(
    name: str, channels: int, side: int
) -> None:
    inner = build_network(name, 10, 3, generator=make_generator(0)).eval()
    network = NormalizedNetwork(inner, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)).eval()
    network.to(memory_format=torch.channels_last)
    classifier = find_classifier(network)
    images = coloured(side)
    ((features, _labels),) = _read(network, classifier, images, unheard)
    assert features.shape[:2] == (4, channels)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.images).float() / 255)
        torch.testing.assert_close(classifier(features), expected, rtol=1e-4, atol=1e-5)
        # A channel without values is a channel whose weights are zero.
        silenced = classifier(features.index_fill(1, torch.tensor([3]), 0))
        columns = classifier.reader.weight.shape[1] // channels
        classifier.reader.weight[:, 3 * columns : 4 * columns] = 0
        torch.testing.assert_close(classifier(features), silenced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [entry.name for entry in ARCHITECTURES])
def test_the_layer_that_gives_the_logits_is_found_in_every_network_of_the_catalog(
    name: str,
) -> None:
    network = build_skeleton(name.replace("wrn-d-k", "wrn-16-1"), 7, 3)
    assert find_logits_layer(network).weight.shape[0] == 7


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("vgg11_bn", "classifier.6"),
        ("mobilenet_v3_small", "classifier.3"),
        ("mobilenet_v2", "classifier.1"),
        ("vit_b_32", "heads.head"),
    ],
)
def test_it_is_found_in_a_head_that_became_a_sequence(name: str, head: str) -> None:
    network = build_skeleton(name, 7, 3)
    parent, _, last = head.rpartition(".")
    layers = nn.Sequential(nn.Identity(), network.get_submodule(head))
    setattr(network.get_submodule(parent), last, layers)
    assert find_logits_layer(network) is layers[1]
    assert find_classifier(network).reader.weight.is_meta


def test_a_transformer_is_pruned_at_its_last_features() -> None:
    network = small_transformer()
    classifier = find_classifier(network)
    images = coloured(8)
    ((features, _labels),) = _read(network, classifier, images, unheard)
    assert features.shape == (4, 16, 1)


def test_a_network_without_a_classifier_of_a_known_name_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="fine_pruning prunes what the classifier reads"):
        find_classifier(nn.Sequential(nn.Conv2d(1, 4, 3)))
