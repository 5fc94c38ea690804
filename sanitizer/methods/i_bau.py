"""Implicit backdoor adversarial unlearning (I-BAU, Zeng et al., ICLR 2022, arXiv 2110.03735).

min over weights theta of max over one perturbation delta, added to every image, of the loss. The
perturbation stands for a trigger that nobody knows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.methods.perturbed import PerturbedNetwork
from sanitizer.methods.step import Step, StepOutput
from sanitizer.methods.twice import twice_differentiable
from sanitizer.parallel.group import ALONE, Group
from sanitizer.spec import IBauConfig


class UnlearningNetwork(PerturbedNetwork):
    """A network that is trained as it is used: batch norm keeps its statistics, nothing drops out.

    As in the authors' code. That also makes a batch's loss the sum of its images' losses, each of
    which can be derived twice. Its perturbation is the round's delta.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.train()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002  # the signature is torch's
        """Puts everything in eval mode, whatever is asked for."""
        return super().train(False)


class IBauStep(Step):
    """Descends by the gradient of what the weights do to the loss, and to the worst perturbation.

    Each round (epoch) makes the perturbation anew: from 0, a step of gradient ascent for each batch
    of the clean images, away from what the network says of them; then it is brought back into its
    ball. After that each batch gives the weights a step (algorithm 1). In that, the perturbation is
    on a share of the images, and the fixed point is the batch's own: the authors' code takes the
    first batch's for all.
    """

    network: UnlearningNetwork

    def __init__(
        self,
        network: nn.Module,
        config: IBauConfig,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
    ) -> None:
        super().__init__(UnlearningNetwork(network), precision, group)
        self.config = config

    def begin_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        rate, penalty = self.config.perturbation_rate, self.config.perturbation_penalty
        found: Tensor | None = None
        for images, labels in batches:
            if found is None:
                found = images.new_zeros((1, *images.shape[1:]))
            with torch.no_grad():
                said = self.classify(images).argmax(dim=1)
            perturbation = found.requires_grad_()
            loss = self._loss(self.classify(images + perturbation), said, len(labels))
            (slope,) = torch.autograd.grad(loss, perturbation)
            found = perturbation.detach()
            found = found + rate * (self.group.sum(slope) - 2 * penalty * found)
        if found is None:
            raise ValueError("an epoch has at least one batch")
        bound = self.config.perturbation_bound
        if bound is not None:
            found = found * (bound / torch.linalg.vector_norm(found).clamp(min=bound))
        self.network.perturbation = found

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        logits = self.classify(self._perturbed(images, self.network.perturbation, len(labels)))
        return self._told(logits, labels)

    def backward(self, images: Tensor, labels: Tensor) -> StepOutput:
        config, size = self.config, len(labels)
        mine = labels[self.group.share(size)]
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        perturbation = self.network.perturbation.detach().requires_grad_()
        logits = self.classify(self._perturbed(images, perturbation, size))
        loss = self._loss(logits, mine, size)
        towards, *direct = torch.autograd.grad(loss, [perturbation, *parameters], allow_unused=True)
        output = self._told(logits.detach(), labels)
        with twice_differentiable():
            ascended = self._loss(self.classify(images + perturbation), mine, size)
        (slope,) = torch.autograd.grad(ascended, perturbation, create_graph=True)
        indirect = implicit_gradient(
            slope,
            perturbation,
            parameters,
            self.group.sum(towards),
            steps=config.fixed_point_steps,
            rate=config.fixed_point_rate,
            penalty=config.perturbation_penalty,
            total=self.group.sum,
        )
        for parameter, *both in zip(parameters, direct, indirect, strict=True):
            for gradient in both:
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                # In place: to the optimizer it is a part of one tensor.
                parameter.grad.add_(gradient)
        return output

    def _perturbed(self, images: Tensor, perturbation: Tensor, size: int) -> Tensor:
        """Puts the perturbation on the first images of the batch, which is in random order."""
        count = max(1, round(self.config.perturbed_share * size))
        rows = torch.arange(size, device=images.device)[self.group.share(size)]
        return images + perturbation * (rows < count).view(-1, 1, 1, 1)

    def _loss(self, logits: Tensor, labels: Tensor, size: int) -> Tensor:
        """This process's part of the mean over a batch of `size` images."""
        return functional.cross_entropy(logits, labels, reduction="sum") / size

    def _told(self, logits: Tensor, labels: Tensor) -> StepOutput:
        (whole,) = self.group.gather([logits], len(labels))
        return StepOutput(whole, {"cross_entropy": functional.cross_entropy(whole, labels)})


def implicit_gradient(
    slope: Tensor,
    perturbation: Tensor,
    parameters: Sequence[Tensor],
    towards: Tensor,
    *,
    steps: int,
    rate: float,
    penalty: float,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> list[Tensor | None]:
    """How the weights change a loss by changing the perturbation that is the worst for them.

    The perturbation is taken for a fixed point of phi(delta, theta) = delta + rate * (d loss /
    d delta - 2 * penalty * delta), an ascent. So d delta / d theta = (1 - d phi / d delta)^-1
    d phi / d theta, and v = (1 - d phi / d delta)^-T towards is approached by v <- (d phi /
    d delta)^T v + towards from v = 0 (section 3 of arXiv 2110.03735; Grazzi et al., arXiv
    2006.16218).

    Args:
        slope: d loss / d delta, with its graph.
        perturbation: delta, which the graph begins with.
        parameters: theta.
        towards: The gradient of the outer loss with respect to delta.
        steps: How often v is improved, at least once.
        rate: See above.
        penalty: See above.
        total: The sum over the processes that share a batch: `slope` is then of a part of it.

    Returns:
        (d phi / d theta)^T v for each of the parameters, of this process's part; none where the
        slope does not depend on it.
    """
    solved = towards
    for _ in range(steps - 1):
        (curved,) = torch.autograd.grad(
            slope, perturbation, solved, retain_graph=True, materialize_grads=True
        )
        solved = solved + rate * (total(curved) - 2 * penalty * solved) + towards
    return list(torch.autograd.grad(slope, parameters, rate * solved, allow_unused=True))
