"""A network that takes images as they are: normalisation is part of the model, not of the data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalizedNetwork(nn.Module):
    """Subtracts the mean, divides by the standard deviation, and classifies.

    Args:
        network: Takes normalised images [B, C, H, W], returns logits [B, classes].
        mean: Per channel, for images in [0, 1].
        std: Per channel, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means and {len(std)} standard deviations")
        self.network = network
        # Not persistent: the upload has no such keys, and neither has what is written back.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._subtracts = any(value != 0 for value in mean)
        self._divides = any(value != 1 for value in std)

    def forward(self, images: Tensor) -> Tensor:
        """Classifies float images [B, C, H, W] in [0, 1]; returns logits [B, classes]."""
        if self._subtracts:
            images = images - self.mean
        if self._divides:
            images = images / self.std
        logits: Tensor = self.network(images)
        return logits
