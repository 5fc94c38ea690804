"""A step owns the network it trains and what it is trained against, and turns a batch into named
losses. The loop knows nothing of distillation; a step knows nothing of optimizers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """What a step makes of one batch."""

    logits: Tensor
    """[B, classes], of the trained network."""
    losses: Mapping[str, Tensor]
    """Scalars by name, already weighted: what is minimised is their sum."""


class Step(ABC):
    """One method's way from a batch to its losses.

    Attributes:
        network: What is trained. Its mode (train or eval) is the loop's business.
        precision: What networks compute in; losses are float32 always, and so are the weights.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype = torch.float32) -> None:
        self.network = network
        self.precision = precision

    def classify(self, images: Tensor) -> Tensor:
        """Logits of the trained network, [B, classes], float32."""
        with computing_in(self.precision, images.device):
            logits: Tensor = self.network(images)
        return logits.float()

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Losses of one batch.

        Args:
            images: [B, C, H, W], float, in [0, 1].
            labels: [B], int64.
        """

    def attached(self) -> AbstractContextManager[object]:
        """Attaches what the step needs on its networks (hooks) for as long as the loop runs."""
        return nullcontext()


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Lets networks compute in another type than their weights have; float32: as they are."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision)
