"""A network with one perturbation of all of its images, which training is at."""

from typing import Any

import torch
from torch import Tensor, nn


class PerturbedNetwork(nn.Module):
    """A network, and a perturbation that a step seeks and trains it against.

    Attributes:
        perturbation: [1, C, H, W]; empty before there is one. Part of the state, for a run that is
            taken up again.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.perturbation = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        logits: Tensor = self.network(images)
        return logits

    def get_extra_state(self) -> Tensor:
        """For `state_dict`. No buffer: its shape is not known when a state is loaded."""
        return self.perturbation

    def set_extra_state(self, state: Any) -> None:
        """For `load_state_dict`."""
        self.perturbation = state.to(next(self.network.parameters()).device)


def root_mean_square(values: Tensor) -> Tensor:
    """Of all values; a scalar."""
    return values.square().mean().sqrt()


def within(values: Tensor, bound: float) -> Tensor:
    """The values, scaled down to a root mean square where theirs is larger."""
    return values * (bound / root_mean_square(values).clamp(min=bound))
