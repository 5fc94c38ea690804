"""Mode connectivity repair (MCR, Zhao et al., ICLR 2020, arXiv 2005.00060).

Two models are joined by a curve in the space of weights whose points all do well on the clean
images (Garipov et al., NeurIPS 2018, arXiv 1802.10026). Between its ends a backdoor gets lost,
which the clean images never called for. Where a single model is given, the other end is that model
fine-tuned.

IBM has filed for a patent on the method: WO2021059106A1. Whoever uses it should look at that first.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sanitizer.compute import computing_in
from sanitizer.data.image_set import ImageSet
from sanitizer.events import Stage
from sanitizer.methods.heldout import Tell, batch_for
from sanitizer.methods.step import Step, StepOutput
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.spec import McrConfig


class CurveNetwork(nn.Module):
    """A quadratic Bezier curve of networks; what is trained is its bend.

    phi(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end (equation 4 of arXiv 2005.00060), over all
    parameters. The bend begins halfway between the ends.

    Args:
        network: The start. Its parameters become the bend, and are a point of the curve for as long
            as `at` lasts.
        other: The end; of the same architecture.
        position: The t that is measured, and that is left in the end.
    """

    draws: Tensor

    def __init__(self, network: nn.Module, other: nn.Module, position: float) -> None:
        super().__init__()
        self.network = network
        self.position = position
        # A function of the stages before, so no part of the state.
        self._start = [parameter.detach().clone() for parameter in network.parameters()]
        self._end = [parameter.detach().clone() for parameter in other.parameters()]
        # On the CPU and part of the state: a run that is taken up again draws what it would have.
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            for bend, start, end in self._triples():
                bend.copy_((start + end) / 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]: where it is being trained of the weights as they are, else of those
        at `position`."""
        if self.training:
            logits: Tensor = self.network(images)
            return logits
        with self.at(self.position):
            logits = self.network(images)
        return logits

    @contextmanager
    def at(self, t: float) -> Iterator[None]:
        """Makes the network the one at t, in [0, 1]; afterwards it is the bend again, exactly."""
        bends = [parameter.detach().clone() for parameter in self.network.parameters()]
        try:
            self.leave(t)
            yield
        finally:
            with torch.no_grad():
                for parameter, bend in zip(self.network.parameters(), bends, strict=True):
                    parameter.copy_(bend)

    @torch.no_grad()
    def leave(self, t: float) -> None:
        """Makes the network the one at t, for good."""
        for bend, start, end in self._triples():
            bend.mul_(bend_share(t)).add_(start, alpha=(1 - t) ** 2).add_(end, alpha=t**2)

    def _triples(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        return zip(self.network.parameters(), self._start, self._end, strict=True)


class CurveStep(Step):
    """Trains the bend: each batch is seen by the network at another t, uniform in [0, 1].

    d loss / d bend = 2 t (1 - t) d loss / d phi(t). Weight decay is that of phi(t), as in the
    authors' code, and no matter of the optimizer.

    Gradients must be zero, or not there, before each step: they are scaled after it.
    """

    network: CurveNetwork

    def __init__(
        self,
        network: nn.Module,
        other: nn.Module,
        config: McrConfig,
        seed: int,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
    ) -> None:
        super().__init__(CurveNetwork(network, other, config.position), precision, group)
        self.config = config
        self.seed = seed

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        (logits,) = self.group.gather([self.classify(images)], len(labels))
        return StepOutput(logits, {"cross_entropy": functional.cross_entropy(logits, labels)})

    def backward(self, images: Tensor, labels: Tensor) -> StepOutput:
        t = self._draw()
        decay = self.config.curve.weight_decay
        with self.network.at(t):
            output = super().backward(images, labels)
            for parameter in self.network.parameters():
                if parameter.grad is None:
                    continue
                # Everybody has all of the weights, and the gradients are summed.
                if decay and self.group.is_leader:
                    parameter.grad.add_(parameter.detach(), alpha=decay)
                parameter.grad.mul_(bend_share(t))
        return output

    def _draw(self) -> float:
        """A t in [0, 1), the same for everybody."""
        generator = make_generator(
            self.seed, Stage.CURVE.value, "position", int(self.network.draws)
        )
        self.network.draws.add_(1)
        return torch.rand((), generator=generator, dtype=torch.float64).item()


def bend_share(t: float) -> float:
    """The weight of the bend in the point at t."""
    return 2 * t * (1 - t)


def recompute_statistics(
    network: nn.Module,
    images: ImageSet,
    tell: Tell,
    *,
    batch_size: int,
    seed: int,
    precision: torch.dtype,
) -> Mapping[str, float]:
    """Gives batch norms the statistics of the clean images: those of a point between two networks
    are nobody's.

    Means over all images, of what the batch norm itself sees while the others normalise by their
    batch; the variance is the mean of the batches' (Garipov et al., arXiv 1802.10026, section 3.3).

    Args:
        network: Changed in place, and left in eval mode.
        images: Taken in an order that depends on the seed: a batch of one class alone would tell of
            that class.
        tell: See `Tell`.
        batch_size: Images whose variance is taken at a time. That of the training: of fewer it
            would be smaller than what the weights were trained with. One that is left over goes
            with those before it.
        seed: Of the run.
        precision: What the network computes in.

    Returns:
        How many batch norms there were.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    network.eval()
    if norms:
        order = torch.randperm(len(images), generator=make_generator(seed, Stage.STATISTICS.value))
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        for places in _batches(order, batch_size):
            batch = batch_for(network, images, places.numpy())
            seen += len(places)
            for norm in norms:
                norm.momentum = len(places) / seen
            with torch.no_grad(), computing_in(precision, batch.device):
                network(batch)
            tell(len(places))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
    return {"batch_norms": len(norms)}


def _batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """None of one, on which a batch norm of a 1 x 1 map cannot train."""
    *others, last = torch.split(order, max(2, batch_size))
    if len(last) == 1 and others:
        last = torch.cat([others.pop(), last])
    return [*others, last]
