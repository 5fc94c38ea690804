"""Weights that go from one network to another of the same architecture, or to itself as it was."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def put_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies weights into a network, by name; what `state` lacks is left as it is.

    Unlike `load_state_dict` no hook of the network's runs: MNASNet takes no weights that do not say
    of which version of it they are, and a plain dict does not, nor does a safetensors file.

    Args:
        state: On any device, of any dtype; the network keeps its own.

    Raises:
        KeyError: The network has no such parameter or buffer.
        ValueError: One is of another shape.
    """
    own = network.state_dict()
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ValueError(
                f"{name} of shape {list(own[name].shape)} was expected, got {list(value.shape)}"
            )
        own[name].copy_(value)
