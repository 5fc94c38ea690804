"""A teacher that cannot learn."""

from typing import Self

import torch
from torch import Tensor, nn

from sanitizer.compute import computing_in


class FrozenTeacher(nn.Module):
    """Wraps a network so that it stays in eval mode and never gets a gradient, whoever calls.

    Args:
        precision: What it computes in.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.precision = precision
        self.network = network.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002  # the signature is torch's
        """Does nothing: batch-norm statistics of a teacher are as frozen as its weights."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        with computing_in(self.precision, images.device):
            logits: Tensor = self.network(images)
        return logits
