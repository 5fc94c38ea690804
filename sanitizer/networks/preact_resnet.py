"""Pre-activation residual networks (arXiv 1603.05027), under the key names usual for CIFAR."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ("layer1", "layer2", "layer3", "layer4")

Depths = Mapping[str, tuple[bool, tuple[int, int, int, int]]]
"""By name: whether the blocks are bottlenecks, and how many each stage has."""

DEPTHS: Depths = {
    "preact_resnet18": (False, (2, 2, 2, 2)),
    "preact_resnet34": (False, (3, 4, 6, 3)),
    "preact_resnet50": (True, (3, 4, 6, 3)),
    "preact_resnet101": (True, (3, 4, 23, 3)),
    "preact_resnet152": (True, (3, 8, 36, 3)),
}


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after its batch norm and ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, width, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return out + shortcut


class PreActBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after its batch norm and ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, 4 * width, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out = self.conv3(F.relu(self.bn3(out), inplace=True))
        return out + shortcut


class PreActResNet(nn.Module):
    """PreAct-ResNet with a 3x3 stem and four stages.

    Args:
        name: A key of `DEPTHS`.
        num_classes: Length of the logits.
        channels: Of the images.
        final_norm: Whether a batch norm and ReLU (`bn`) follow the last stage, as in the paper. The
            implementations usual for CIFAR have none.
    """

    def __init__(
        self, name: str, num_classes: int, channels: int = 3, *, final_norm: bool = False
    ) -> None:
        super().__init__()
        bottleneck, blocks = DEPTHS[name]
        block = PreActBottleneck if bottleneck else PreActBlock
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        in_channels = 64
        for i, count in enumerate(blocks):
            width, stage = 64 * 2**i, []
            for j in range(count):
                stage.append(block(in_channels, width, stride=2 if i > 0 and j == 0 else 1))
                in_channels = width * block.expansion
            self.add_module(STAGES[i], nn.Sequential(*stage))
        self.bn = nn.BatchNorm2d(in_channels) if final_norm else None
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        x = self.conv1(x)
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
        if self.bn is not None:
            x = F.relu(self.bn(x), inplace=True)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def guess_name(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The PreAct-ResNet nearest to the stages in a state dict; None if it is none of them."""
    if "layer1.0.bn1.weight" not in shapes or "linear.weight" not in shapes:
        return None
    return nearest_depth(DEPTHS, shapes)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))


def nearest_depth(depths: Depths, shapes: Mapping[str, Sequence[int]]) -> str:
    """The name whose stages have the most similar numbers of blocks to those in a state dict."""
    bottleneck = "layer1.0.conv3.weight" in shapes
    blocks = [
        sum(f"{stage}.{j}.conv1.weight" in shapes for j in range(len(shapes))) for stage in STAGES
    ]
    return min(
        (name for name, (is_bottleneck, _) in depths.items() if is_bottleneck == bottleneck),
        key=lambda name: sum(abs(a - b) for a, b in zip(depths[name][1], blocks, strict=True)),
    )
