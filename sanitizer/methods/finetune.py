"""Plain fine-tuning: cross-entropy on clean images."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.methods.step import Step, StepOutput
from sanitizer.parallel.group import ALONE, Group


class FinetuneStep(Step):
    """Also how the teacher of the distillation methods is made.

    Args:
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
    """

    def __init__(
        self,
        network: nn.Module,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(network, precision, group)
        self.label_smoothing = label_smoothing

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        (logits,) = self.group.gather([self.classify(images)], len(labels))
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return StepOutput(logits, {"cross_entropy": loss})
