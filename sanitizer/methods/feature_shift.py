"""Feature shift tuning (FST, Min et al., NeurIPS 2023, arXiv 2310.01875).

In a model that was poisoned with few images, or with images of the right label, backdoor and clean
features are entangled: fine-tuning finds nothing to change. A classifier drawn anew and kept away
from the old one forces the features to move.
"""

import torch
from torch import Tensor, nn

from sanitizer.methods.fine_pruning import find_logits_layer
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.step import StepOutput
from sanitizer.parallel.group import ALONE, Group


class FeatureShiftStep(FinetuneStep):
    """Cross-entropy plus the inner product of the classifier's weights, the new and the old.

    The classifier is the layer that gives the logits.

    alpha <w, w_old>, with ||w|| = ||w_old|| after every step (equation 1 of the paper). The
    classifier is drawn anew when the step is made. The authors descend with plain momentum; the
    loop's is Nesterov's, of the same strength.

    Args:
        alpha: Of the inner product, 0 or more.
        generator: Where the new classifier comes from.
        label_smoothing: As of `FinetuneStep`.

    Raises:
        InvalidSpec: The network has no classifier that is known.
    """

    def __init__(
        self,
        network: nn.Module,
        alpha: float,
        generator: torch.Generator,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(network, precision, group, label_smoothing=label_smoothing)
        self.alpha = alpha
        layer = find_logits_layer(network)
        self._weight = layer.weight
        self._old = layer.weight.detach().clone()
        self._length = torch.linalg.vector_norm(self._old)
        draw_anew(layer, generator)
        self.updated()

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        output = super().__call__(images, labels)
        # To an optimizer that adds up what every process has, it is one loss, and not one of each.
        shift = self.alpha * (self._weight * self._old).sum() / self.group.size
        told = shift.detach() * (self.group.size - 1)
        return StepOutput(output.logits, {**output.losses, "shift": shift + told})

    @torch.no_grad()
    def updated(self) -> None:
        """Gives the classifier's weights their old length again."""
        self._weight.mul_(self._length / torch.linalg.vector_norm(self._weight).clamp(min=1e-12))


@torch.no_grad()
def draw_anew(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Weights and biases as torch draws them for a new layer: uniform, within 1 / sqrt(fan in)."""
    bound = layer.weight[0].numel() ** -0.5
    for values in (layer.weight, layer.bias):
        if values is not None:
            drawn = torch.empty(values.shape).uniform_(-bound, bound, generator=generator)
            values.copy_(drawn)
