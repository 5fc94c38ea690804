"""ResNets for small images against their definition, torchvision's, and the usual key names."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from sanitizer.networks.checkpoints import Checkpoint, Layout
from sanitizer.networks.cifar_resnet import (
    AS_TORCHVISION,
    DEPTHS,
    USUAL,
    BasicBlock,
    Bottleneck,
    CifarResNet,
    guess_name,
    is_changed_torchvision,
)
from sanitizer.networks.registry import load_network
from sanitizer.randomness import make_generator
from sanitizer.spec import ModelOptions


def _slow(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """Convolutions each before its norm, ReLU between; the sum with the shortcut rectified."""
    out: Tensor = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    if isinstance(block, Bottleneck):
        out = block.bn3(block.conv3(torch.relu(out)))
    shortcut = getattr(block, "shortcut", None)
    return torch.relu(out + (x if shortcut is None else shortcut(x)))


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_equals_its_definition(kind: type[BasicBlock | Bottleneck], stride: int) -> None:
    block = kind(64, 64 // kind.expansion, stride, USUAL).eval()
    x = torch.randn(2, 64, 8, 8, generator=make_generator("block", stride))
    before = x.clone()

    torch.testing.assert_close(block(x), _slow(block, x))

    assert torch.equal(x, before)
    assert hasattr(block, "shortcut") == (stride == 2)


@pytest.mark.parametrize("name", DEPTHS)
def test_the_number_in_the_name_counts_the_layers(name: str) -> None:
    with torch.device("meta"):
        network = CifarResNet(name, 10)
    counted = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in path
    ]

    assert len(counted) == int(name.removeprefix("cifar_resnet"))
    assert guess_name({k: tuple(v.shape) for k, v in network.state_dict().items()}) == name


@pytest.mark.parametrize(
    ("original", "name"), [(resnet18, "18"), (resnet50, "50")], ids=["18", "50"]
)
def test_a_torchvision_network_with_another_stem_is_found_and_computes_the_same(
    original: type[nn.Module], name: str
) -> None:
    theirs = original(num_classes=7)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.eval()
    checkpoint = Checkpoint("pytorch", dict(theirs.state_dict()), Layout("zip"), [])

    loaded = load_network(checkpoint, ModelOptions())

    assert (loaded.architecture, loaded.detected) == (f"cifar_resnet{name}", True)
    assert (loaded.num_classes, loaded.input_size) == (7, (32, 32))
    assert [tap.module for tap in loaded.taps] == ["layer1", "layer2", "layer3", "layer4"]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(images), theirs(images))
    assert list(loaded.state_for(checkpoint)) == list(checkpoint.state)
    assert is_changed_torchvision(loaded.network.network)


def test_the_usual_names_leave_no_question_about_the_stem() -> None:
    with torch.device("meta"):
        assert not is_changed_torchvision(CifarResNet("cifar_resnet18", 10))
        assert not is_changed_torchvision(resnet18())


def test_the_keys_are_the_usual_ones() -> None:
    with torch.device("meta"):
        keys = set(CifarResNet("cifar_resnet18", 10).state_dict())
        others = set(CifarResNet("cifar_resnet18", 10, names=AS_TORCHVISION).state_dict())

    assert {
        "conv1.weight",
        "bn1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.running_mean",
        "layer2.0.shortcut.0.weight",
        "layer2.0.shortcut.1.bias",
        "linear.weight",
        "linear.bias",
    } <= keys
    assert "layer1.0.shortcut.0.weight" not in keys
    renamed = {k.replace("shortcut", "downsample").replace("linear", "fc") for k in keys}
    assert others == renamed


def test_torchvision_s_own_stem_is_none_of_these() -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in resnet18().state_dict().items()}
    assert guess_name(shapes) is None
