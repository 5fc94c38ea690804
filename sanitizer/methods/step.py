"""A step owns the network it trains and what it is trained against, and turns a batch into named
losses. The loop knows nothing of distillation; a step knows nothing of optimizers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanitizer.compute import computing_in
from sanitizer.parallel.group import ALONE, Group


@dataclass(frozen=True)
class StepOutput:
    """What a step makes of one batch."""

    logits: Tensor
    """[B, classes], of the trained network, for the whole batch; or for its first images, where a
    method has their figures alone."""
    losses: Mapping[str, Tensor]
    """Scalars by name, already weighted: what is minimised is their sum."""

    @property
    def loss(self) -> Tensor:
        """What is minimised."""
        return torch.stack(list(self.losses.values())).sum()


class Step(ABC):
    """One method's way from a batch to its losses.

    Attributes:
        network: What is trained. Its mode (train or eval) is the loop's business.
        precision: What networks compute in; losses are float32 always, and so are the weights.
        group: Who shares each batch. A step gathers what its losses are made of, so that everybody
            has the losses of the whole batch.
    """

    def __init__(
        self, network: nn.Module, precision: torch.dtype = torch.float32, group: Group = ALONE
    ) -> None:
        self.network = network
        self.precision = precision
        self.group = group

    def classify(self, images: Tensor) -> Tensor:
        """Logits of the trained network, [B, classes], in 32 bits at least."""
        with computing_in(self.precision, images.device):
            logits: Tensor = self.network(images)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Losses of one batch.

        Args:
            images: [B, C, H, W], float, in [0, 1]; where a group shares the batch, its own rows.
            labels: [B], int64, of the whole batch.
        """

    def backward(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Adds the gradients of the losses to those of the trained parameters.

        A method that takes more than one pass for an update does so here.

        Args:
            images: As of a call.
            labels: As of a call.

        Returns:
            The losses, for the figures.
        """
        output = self(images, labels)
        output.loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        return output

    def begin_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:  # noqa: B027
        """Called before the first step of each epoch.

        A run that is taken up again within an epoch does not call it again: what it finds belongs
        into the network's state.

        Args:
            batches: Of the epoch, as they will come; read or left.
        """

    def begin_step(self, epoch: int, step: int) -> None:  # noqa: B027
        """Called before each step: both count from 0, the same for all that share a run."""

    def updated(self) -> None:  # noqa: B027  # most methods have nothing to put right
        """Called after each update: puts back what it must not have moved."""

    def attached(self) -> AbstractContextManager[object]:
        """Attaches what the step needs on its networks (hooks) for as long as the loop runs."""
        return nullcontext()
