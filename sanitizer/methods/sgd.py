"""Stochastic gradient descent with Nesterov momentum, and Adam, on all parameters at once.

Not those of `torch.optim`: their first use imports `torch._dynamo`, which doubles the modules of a
process and adds 1.2 s to the start of every run; and they update layer by layer. A test holds them
equal.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sanitizer.methods.flat import FlatParameters
from sanitizer.spec import Training

ADAM_SQUARE_DECAY = 0.999
ADAM_FLOOR = 1e-8
"""The paper's (arXiv 1412.6980, algorithm 1), and torch's defaults."""


class Descent(ABC):
    """How gradients move the parameters of a network.

    Parameters that the first backward pass does not reach, such as an auxiliary head's, are left
    alone, by weight decay too.
    """

    def __init__(
        self, network: nn.Module, training: Training, state: dict[str, Tensor] | None = None
    ) -> None:
        """`state` is what `state_dict` gave when a run was interrupted."""
        self._network = network
        self._training = training
        self._saved = state or {}
        self._flat: FlatParameters | None = None
        self._state: dict[str, Tensor] = {}

    @property
    def gradients(self) -> Tensor:
        """[P], of all parameters that are trained; there once a backward pass has been."""
        return self._laid().gradients

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Moves the parameters; the gradients are used up, and zero afterwards."""
        flat = self._laid()
        if self._training.weight_decay:
            flat.gradients.add_(flat.values, alpha=self._training.weight_decay)
        self._move(flat.values, flat.gradients, learning_rate)
        flat.gradients.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later run needs to go on; live, not a copy."""
        return self._state

    def release(self) -> None:
        """Leaves the network's parameters as ordinary ones."""
        if self._flat is not None:
            self._flat.release()
            self._flat = None

    @abstractmethod
    def _move(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Moves `values` [P] by their gradient, which it may overwrite."""

    @abstractmethod
    def _begin(self, values: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""

    def _laid(self) -> FlatParameters:
        if self._flat is None:
            reached = [p for p in self._network.parameters() if p.grad is not None]
            self._flat = FlatParameters(reached)
            self._state = self._begin(self._flat.values)
            if self._saved:
                for name, value in self._state.items():
                    value.copy_(self._saved[name])
        return self._flat


class Sgd(Descent):
    """The update of `torch.optim.SGD`.

    g = gradient + weight_decay * w;  v = momentum * v + g;  w = w - rate * (g + momentum * v)
    (Nesterov momentum as in Sutskever et al., ICML 2013). Without momentum: w = w - rate * g.
    """

    def _begin(self, values: Tensor) -> dict[str, Tensor]:
        return {"velocity": torch.zeros_like(values)}

    def _move(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        momentum = self._training.momentum
        if momentum:
            velocity = self._state["velocity"]
            velocity.mul_(momentum).add_(gradient)
            gradient.add_(velocity, alpha=momentum)
        values.add_(gradient, alpha=-learning_rate)


class Adam(Descent):
    """The update of `torch.optim.Adam` (arXiv 1412.6980); the momentum is its beta_1.

    g = gradient + weight_decay * w;  m and s are running means of g and g^2, corrected for their
    start at 0;  w = w - rate * m / (sqrt(s) + 1e-8).
    """

    def _begin(self, values: Tensor) -> dict[str, Tensor]:
        return {
            "mean": torch.zeros_like(values),
            "square": torch.zeros_like(values),
            # On the CPU: what is made of it is no work for a device.
            "steps": torch.zeros((), dtype=torch.int64),
        }

    def _move(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        momentum = self._training.momentum
        mean, square = self._state["mean"], self._state["square"]
        steps = int(self._state["steps"].add_(1))
        mean.lerp_(gradient, 1 - momentum)
        square.mul_(ADAM_SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - ADAM_SQUARE_DECAY)
        size = (square / (1 - ADAM_SQUARE_DECAY**steps)).sqrt_().add_(ADAM_FLOOR)
        values.addcdiv_(mean, size, value=-learning_rate / (1 - momentum**steps))


@contextmanager
def descending(
    network: nn.Module, training: Training, state: dict[str, Tensor] | None = None
) -> Iterator[Descent]:
    """The optimizer of a training for as long as the context lasts; the network is an ordinary one
    afterwards."""
    descent = {"sgd": Sgd, "adam": Adam}[training.optimizer](network, training, state)
    try:
        yield descent
    finally:
        descent.release()
