"""Stochastic gradient descent with Nesterov momentum, on all parameters at once.

Not `torch.optim.SGD`: its first use imports `torch._dynamo`, which doubles the modules of a process
and adds 1.2 s to the start of every run; and it updates layer by layer. A test holds the two equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sanitizer.methods.flat import FlatParameters
from sanitizer.spec import Training


class Sgd:
    """The update of `torch.optim.SGD`.

    g = gradient + weight_decay * w;  v = momentum * v + g;  w = w - rate * (g + momentum * v)
    (Nesterov momentum as in Sutskever et al., ICML 2013). Without momentum: w = w - rate * g.

    Parameters that the first backward pass does not reach, such as an auxiliary head's, are left
    alone, by weight decay too.
    """

    def __init__(
        self, network: nn.Module, training: Training, state: dict[str, Tensor] | None = None
    ) -> None:
        """`state` is what `state_dict` gave when a run was interrupted."""
        self._network = network
        self._training = training
        self._state = state or {}
        self._flat: FlatParameters | None = None
        self._velocity = torch.empty(0)

    @property
    def gradients(self) -> Tensor:
        """[P], of all parameters that are trained; there once a backward pass has been."""
        return self._laid().gradients

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Moves the parameters; the gradients are used up, and zero afterwards."""
        flat, gradient = self._laid(), self.gradients
        momentum, weight_decay = self._training.momentum, self._training.weight_decay
        if weight_decay:
            gradient.add_(flat.values, alpha=weight_decay)
        if momentum:
            self._velocity.mul_(momentum).add_(gradient)
            gradient.add_(self._velocity, alpha=momentum)
        flat.values.add_(gradient, alpha=-learning_rate)
        gradient.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later run needs to go on; live, not a copy."""
        return {"velocity": self._velocity}

    def release(self) -> None:
        """Leaves the network's parameters as ordinary ones."""
        if self._flat is not None:
            self._flat.release()
            self._flat = None

    def _laid(self) -> FlatParameters:
        if self._flat is None:
            reached = [p for p in self._network.parameters() if p.grad is not None]
            self._flat = FlatParameters(reached)
            self._velocity = torch.zeros_like(self._flat.values)
            if self._state:
                self._velocity.copy_(self._state["velocity"])
        return self._flat


@contextmanager
def descending(
    network: nn.Module, training: Training, state: dict[str, Tensor] | None = None
) -> Iterator[Sgd]:
    """An `Sgd` for as long as the context lasts; the network is an ordinary one afterwards."""
    sgd = Sgd(network, training, state)
    try:
        yield sgd
    finally:
        sgd.release()
