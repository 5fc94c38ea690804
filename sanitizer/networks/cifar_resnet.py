"""Residual networks (arXiv 1512.03385) for small images: a 3x3 stem, and no pooling after it.

Two sets of key names are usual: `shortcut` and `linear`, and torchvision's `downsample` and `fc`,
which people keep who change the stem of a torchvision network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from sanitizer.networks.preact_resnet import STAGES, Depths, nearest_depth

DEPTHS: Depths = {
    "cifar_resnet18": (False, (2, 2, 2, 2)),
    "cifar_resnet34": (False, (3, 4, 6, 3)),
    "cifar_resnet50": (True, (3, 4, 6, 3)),
    "cifar_resnet101": (True, (3, 4, 23, 3)),
    "cifar_resnet152": (True, (3, 8, 36, 3)),
}


@dataclass(frozen=True)
class Names:
    """What modules are called."""

    shortcut: str
    head: str


USUAL = Names("shortcut", "linear")
AS_TORCHVISION = Names("downsample", "fc")


class _Block(nn.Module):
    """Convolutions with a batch norm each, ReLU between them and after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, names: Names) -> None:
        super().__init__()
        self._shortcut = names.shortcut
        # torchvision's blocks have none where nothing changes, the usual ones an empty one: either
        # way there are no weights.
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.add_module(names.shortcut, nn.Sequential(conv, nn.BatchNorm2d(out_channels)))

    def shortcut_of(self, x: Tensor) -> Tensor:
        """What is added to the convolutions' output."""
        if self._shortcut not in self._modules:
            return x
        shortcut: Tensor = self.get_submodule(self._shortcut)(x)
        return shortcut


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, names: Names) -> None:
        super().__init__(in_channels, width, stride, names)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, width, H / stride, W / stride]."""
        out: Tensor = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut_of(x), inplace=True)


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions; the one in the middle strides."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, names: Names) -> None:
        out_channels = self.expansion * width
        super().__init__(in_channels, out_channels, stride, names)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, 4 * width, H / stride, W / stride]."""
        out: Tensor = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut_of(x), inplace=True)


class CifarResNet(nn.Module):
    """ResNet with a 3x3 stem and four stages.

    Args:
        name: A key of `DEPTHS`.
        num_classes: Length of the logits.
        channels: Of the images.
        names: What the modules are called.
    """

    def __init__(
        self, name: str, num_classes: int, channels: int = 3, *, names: Names = USUAL
    ) -> None:
        super().__init__()
        bottleneck, blocks = DEPTHS[name]
        block = Bottleneck if bottleneck else BasicBlock
        self.names = names
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        in_channels = 64
        for i, count in enumerate(blocks):
            width, stage = 64 * 2**i, []
            for j in range(count):
                stage.append(block(in_channels, width, 2 if i > 0 and j == 0 else 1, names))
                in_channels = width * block.expansion
            self.add_module(STAGES[i], nn.Sequential(*stage))
        self.add_module(names.head, nn.Linear(in_channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.get_submodule(self.names.head)(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def names_in(shapes: Mapping[str, Sequence[int]]) -> Names:
    """What the modules are called in a state dict."""
    torchvisions = any(key.startswith(f"{AS_TORCHVISION.head}.") for key in shapes)
    return AS_TORCHVISION if torchvisions else USUAL


def is_changed_torchvision(network: nn.Module) -> bool:
    """Whether a network is of these, under torchvision's names: nobody knows what its stem did."""
    return isinstance(network, CifarResNet) and network.names == AS_TORCHVISION


def guess_name(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The ResNet nearest to the stages in a state dict; None if it is none of these.

    A stem of 7x7 is torchvision's own network.
    """
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or tuple(stem[2:]) != (3, 3):
        return None
    if not {"bn1.weight", "layer1.0.bn1.weight"} <= set(shapes):
        return None
    return nearest_depth(DEPTHS, shapes)
