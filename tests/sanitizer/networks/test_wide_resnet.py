"""WRN-d-k against its definition and the authors' own checkpoint."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sanitizer.networks.checkpoints import read_checkpoint
from sanitizer.networks.registry import load_network
from sanitizer.networks.wide_resnet import WideBlock, WideResNet, guess_name
from sanitizer.randomness import make_generator
from sanitizer.spec import ModelOptions


def _slow_block(block: WideBlock, x: Tensor) -> Tensor:
    """The authors' block, written from its definition, nothing in place."""
    activated = torch.relu(block.bn1(x))
    out = F.conv2d(activated, block.conv1.weight, stride=block.conv1.stride, padding=1)
    out = F.conv2d(torch.relu(block.bn2(out)), block.conv2.weight, padding=1)
    if block.convShortcut is None:
        return x + out
    return F.conv2d(activated, block.convShortcut.weight, stride=block.convShortcut.stride) + out


@pytest.mark.parametrize(("width", "stride"), [(16, 1), (32, 2), (32, 1)])
def test_a_block_equals_its_definition(width: int, stride: int) -> None:
    block = WideBlock(16, width, stride).eval()
    x = torch.randn(2, 16, 8, 8, generator=make_generator("block", width, stride))
    before = x.clone()

    torch.testing.assert_close(block(x), _slow_block(block, x))

    assert torch.equal(x, before)


def test_depth_counts_the_layers() -> None:
    layers = [
        module
        for name, module in WideResNet(16, 2, 10).named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "Shortcut" not in name
    ]

    assert len(layers) == 14  # d counts the two shortcuts of the narrow network as well


@pytest.mark.parametrize(("depth", "factor"), [(16, 1), (16, 2), (28, 10), (40, 2), (10, 4)])
def test_depth_and_width_are_read_off_the_shapes(depth: int, factor: int) -> None:
    with torch.device("meta"):
        state = WideResNet(depth, factor, 10).state_dict()

    assert guess_name({k: tuple(v.shape) for k, v in state.items()}) == f"wrn-{depth}-{factor}"


@pytest.mark.parametrize(("depth", "factor"), [(4, 1), (17, 1), (16, 0)])
def test_a_depth_or_width_that_is_none_is_refused(depth: int, factor: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        WideResNet(depth, factor, 10)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 40)])
def test_images_of_other_sizes_pass(size: tuple[int, int]) -> None:
    assert WideResNet(10, 1, 5, channels=1)(torch.rand(2, 1, *size)).shape == (2, 5)


@pytest.mark.real_data
def test_the_authors_checkpoint_gives_the_accuracy_it_is_known_for(shared: Path) -> None:
    checkpoint = read_checkpoint(shared / "data/models/argd-gridtrigger-wrn-16-1.pth.tar")
    loaded = load_network(checkpoint, ModelOptions())
    table = pq.read_table(shared / "data/cifar10/test.parquet")
    encoded = table.column("img").to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in encoded])
    labels = torch.tensor(table.column("label").to_pylist())

    hits = 0
    with torch.no_grad():
        for at in range(0, len(images), 500):
            batch = torch.from_numpy(images[at : at + 500]).permute(0, 3, 1, 2).float() / 255
            hits += int((loaded.network(batch).argmax(1) == labels[at : at + 500]).sum())

    assert (loaded.architecture, loaded.detected) == ("wrn-16-1", True)
    assert (loaded.num_classes, loaded.channels, loaded.input_size) == (10, 3, (32, 32))
    assert [tap.module for tap in loaded.taps] == ["block1", "block2", "block3"]
    assert checkpoint.dropped_entries == ["epoch", "best_clean_acc", "best_bad_acc", "optimizer"]
    assert hits / len(images) == pytest.approx(0.7267, abs=2e-4)
