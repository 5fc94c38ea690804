"""PreAct-ResNet against its definition and its usual key names."""

import pytest
import torch
from torch import Tensor, nn

from sanitizer.networks.preact_resnet import (
    DEPTHS,
    PreActBlock,
    PreActBottleneck,
    PreActResNet,
    guess_name,
)
from sanitizer.randomness import make_generator


def _slow(block: PreActBlock | PreActBottleneck, x: Tensor) -> Tensor:
    """Convolutions each after norm and ReLU; the shortcut, if any, from the first activation."""
    first = torch.relu(block.bn1(x))
    out: Tensor = block.conv2(torch.relu(block.bn2(block.conv1(first))))
    if isinstance(block, PreActBottleneck):
        out = block.conv3(torch.relu(block.bn3(out)))
    return out + (x if block.shortcut is None else block.shortcut(first))


@pytest.mark.parametrize("kind", [PreActBlock, PreActBottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_equals_its_definition(
    kind: type[PreActBlock | PreActBottleneck], stride: int
) -> None:
    block = kind(64, 64 // kind.expansion, stride).eval()
    x = torch.randn(2, 64, 8, 8, generator=make_generator("block", stride))
    before = x.clone()

    torch.testing.assert_close(block(x), _slow(block, x))

    assert torch.equal(x, before)
    assert (block.shortcut is None) == (stride == 1)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("preact_resnet18", 18),
        ("preact_resnet34", 34),
        ("preact_resnet50", 50),
        ("preact_resnet101", 101),
        ("preact_resnet152", 152),
    ],
)
def test_the_number_in_the_name_counts_the_layers(name: str, layers: int) -> None:
    with torch.device("meta"):
        network = PreActResNet(name, 10)
    counted = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in path
    ]

    assert len(counted) == layers
    assert guess_name({k: tuple(v.shape) for k, v in network.state_dict().items()}) == name


def test_the_keys_are_the_usual_ones() -> None:
    with torch.device("meta"):
        keys = set(PreActResNet("preact_resnet18", 10).state_dict())

    assert {
        "conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.bn2.running_mean",
        "layer1.0.conv2.weight",
        "layer2.0.shortcut.0.weight",
        "linear.weight",
        "linear.bias",
    } <= keys
    assert "layer1.0.shortcut.0.weight" not in keys
    assert not any(key.startswith("bn.") for key in keys)


def test_a_final_norm_is_there_when_asked_for() -> None:
    network = PreActResNet("preact_resnet18", 10, final_norm=True).eval()

    assert "bn.weight" in network.state_dict()
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_every_name_has_four_stages() -> None:
    assert all(len(blocks) == 4 for _, blocks in DEPTHS.values())
