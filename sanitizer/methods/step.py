"""A step owns the network it trains and what it is trained against, and turns a batch into named
losses. The loop knows nothing of distillation; a step knows nothing of optimizers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from sanitizer.parallel.group import ALONE, Group


@dataclass(frozen=True)
class StepOutput:
    """What a step makes of one batch."""

    logits: Tensor
    """[B, classes], of the trained network, for the whole batch."""
    losses: Mapping[str, Tensor]
    """Scalars by name, already weighted: what is minimised is their sum."""


class Step(ABC):
    """One method's way from a batch to its losses.

    Attributes:
        network: What is trained. Its mode (train or eval) is the loop's business.
        group: Who shares each batch. A step gathers what its losses are made of, so that everybody
            has the losses of the whole batch.
    """

    def __init__(self, network: nn.Module, group: Group = ALONE) -> None:
        self.network = network
        self.group = group

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Losses of one batch.

        Args:
            images: [B, C, H, W], float, in [0, 1]; where a group shares the batch, its own rows.
            labels: [B], int64, of the whole batch.
        """

    def attached(self) -> AbstractContextManager[object]:
        """Attaches what the step needs on its networks (hooks) for as long as the loop runs."""
        return nullcontext()
