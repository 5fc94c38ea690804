"""Wide residual networks, WRN-d-k (arXiv 1605.07146).

The key names are those of the checkpoints that the authors of ARGD and NAD released.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ("block1", "block2", "block3")
MAX_BLOCKS = 166
"""Per stage: a depth of 1000, as deep as residual networks were ever tried."""
MAX_WIDENING = 64


class WideBlock(nn.Module):
    """A pre-activation block of two 3x3 convolutions.

    Where the width changes, the shortcut is a 1x1 convolution of the activated input; where it
    stays, the shortcut is the input itself. The width, not the stride, decides.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return torch.add(shortcut, out)


class WideStage(nn.Module):
    """Blocks of one width; the first may change width and resolution."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(
                    in_channels if i == 0 else out_channels, out_channels, stride if i == 0 else 1
                )
                for i in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-d-k for small images, without dropout.

    Args:
        depth: Number of convolutions and linear layers, 6n + 4.
        widen_factor: The stages have 16, 32 and 64 times this many channels.
        num_classes: Length of the logits.
        channels: Of the images.

    Raises:
        ValueError: The depth is not 6n + 4 with n >= 1, or the factor not positive.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or widen_factor < 1:
            raise ValueError(
                f"a WRN has depth 6n + 4 (10, 16, 22, 28, 40, ...) and a positive widening factor, "
                f"not {depth} and {widen_factor}"
            )
        blocks = (depth - 4) // 6
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, widths[0], stride=1)
        self.block2 = WideStage(blocks, widths[0], widths[1], stride=2)
        self.block3 = WideStage(blocks, widths[1], widths[2], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x), inplace=True)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def guess_name(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The WRN with the depth and width of a state dict; None if it is no WRN's."""
    first = shapes.get("block1.layer.0.conv1.weight")
    if first is None or len(first) != 4:
        return None
    blocks = sum(f"block1.layer.{i}.conv1.weight" in shapes for i in range(len(shapes)))
    return f"wrn-{6 * min(blocks, MAX_BLOCKS) + 4}-{min(max(1, first[0] // 16), MAX_WIDENING)}"
