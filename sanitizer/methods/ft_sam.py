"""Fine-tuning with sharpness-aware minimisation (FT-SAM, Zhu et al., ICCV 2023).

arXiv 2304.11823.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.methods.sharpness import SharpnessAwareStep
from sanitizer.methods.step import StepOutput
from sanitizer.parallel.group import ALONE, Group
from sanitizer.spec import FtSamConfig


class FtSamStep(SharpnessAwareStep):
    """Cross-entropy, with labels smoothed as in the authors' code."""

    def __init__(
        self,
        network: nn.Module,
        config: FtSamConfig,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
    ) -> None:
        super().__init__(network, config.rho, precision, group)
        self.config = config

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        (logits,) = self.group.gather([self.classify(images)], len(labels))
        smoothing = self.config.label_smoothing
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return StepOutput(logits, {"cross_entropy": loss})
