"""A teacher that cannot learn."""

from typing import Self

import torch
from torch import Tensor, nn


class FrozenTeacher(nn.Module):
    """Wraps a network so that it stays in eval mode and never gets a gradient, whoever calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002  # the signature is torch's
        """Does nothing: batch-norm statistics of a teacher are as frozen as its weights."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        logits: Tensor = self.network(images)
        return logits
