"""Steps that descend by the gradient at nearby weights that are worse: adaptive sharpness-aware
minimisation (ASAM, Kwon et al., ICML 2021, arXiv 2102.11600).

A weight is moved in proportion to its size, and neurons that a backdoor needs tend to have large
weights (FT-SAM, Zhu et al., ICCV 2023, arXiv 2304.11823).

Where weights are worse can be found by a part of the batch, at a part of the cost; Du et al. (ICLR
2022, arXiv 2110.03141) take a part for the descent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sanitizer.methods.step import Step, StepOutput
from sanitizer.parallel.group import ALONE, Group

FEWEST = 2
"""Images of a part of a batch: a batch norm cannot normalise by one."""
NORM_FLOOR = 1e-12
"""Added to the norm that is divided by, so that a gradient of zeros moves nothing; the authors'."""


class SharpnessAwareStep(Step):
    """Descends by the gradient at w + e, where e is the worst that may be done to w.

    e = rho T^2 g / ||T g|| with T = diag(|w|) and g the gradient at w (equations 2 and 4 of arXiv
    2304.11823). All trained parameters are moved, biases and batch norm's too, as in the authors'
    code; ASAM's small constant beside |w| is 0 there.

    The running statistics of batch norm are those of the first pass, at w.

    Args:
        rho: How far, in multiples of the weights; 0: the gradient is that at w.
        ascent_share: Of each batch, the first images, by which g is found; in (0, 1]. The figures
            that a step returns are theirs, and so are the running statistics.
        least_ascent_images: By so many at least.
    """

    def __init__(
        self,
        network: nn.Module,
        rho: float,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
        *,
        ascent_share: float = 1.0,
        least_ascent_images: int = 2,
    ) -> None:
        super().__init__(network, precision, group)
        self.rho = rho
        self.ascent_share = ascent_share
        self.least_ascent_images = least_ascent_images

    def gradients(self, output: StepOutput, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Those of the losses, one a parameter; None where a loss does not reach it."""
        return list(torch.autograd.grad(output.loss, parameters, allow_unused=True))

    def at_weights(self, images: Tensor, labels: Tensor, count: int) -> StepOutput:
        """The losses of the first images of a batch, where the weights are.

        Args:
            images: As of a call.
            labels: As of a call, of the whole batch.
            count: Of the whole batch.
        """
        (first,) = self.group.first([images], len(labels), count)
        return self(first, labels[:count])

    def backward(self, images: Tensor, labels: Tensor) -> StepOutput:
        share = self.ascent_share if self.rho else 1.0
        count = part_of(len(labels), share, self.least_ascent_images)
        output = self.at_weights(images, labels, count)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        found = self.gradients(output, parameters)
        reached = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
        weights = [parameter for parameter, _ in reached]
        if not self.rho:
            for weight, gradient in reached:
                # In place: to the optimizer it is a part of one tensor.
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
            return output
        gradients = self._summed([gradient for _, gradient in reached])
        buffers = list(self.network.buffers())
        kept = [value.detach().clone() for value in (*weights, *buffers)]
        with torch.no_grad():
            for weight, change in zip(
                weights, perturbation(weights, gradients, self.rho), strict=True
            ):
                weight.add_(change)
        del found, reached, gradients
        self(images, labels).loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        # Put back from a copy: subtracting what was added would leave its rounding. And only now,
        # since the backward pass refuses what was changed under it.
        with torch.no_grad():
            for value, before in zip((*weights, *buffers), kept, strict=True):
                value.copy_(before)
        return output

    def _summed(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients of the whole batch, of which each process has a part."""
        if self.group.size == 1:
            return gradients
        flat = self.group.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split_with_sizes(flat, [gradient.numel() for gradient in gradients])
        return [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)]


def part_of(size: int, share: float, least: int = FEWEST) -> int:
    """How many images are a share of a batch: so many at least, if there are."""
    return min(size, max(least, round(share * size)))


@torch.no_grad()
def perturbation(weights: list[nn.Parameter], gradients: list[Tensor], rho: float) -> list[Tensor]:
    """What of ||T^-1 e|| <= rho raises the loss the most, to first order (equation 4).

    Args:
        weights: Of the network.
        gradients: The loss's, one a weight.
        rho: How far, in multiples of the weights.
    """
    scaled = [weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(value) for value in scaled])
    )
    factor = rho / (norm + NORM_FLOOR)
    return [weight.abs() * value * factor for weight, value in zip(weights, scaled, strict=True)]
