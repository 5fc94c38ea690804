"""Plain fine-tuning: cross-entropy on clean images."""

from torch import Tensor
from torch.nn import functional

from sanitizer.methods.step import Step, StepOutput


class FinetuneStep(Step):
    """Also how the teacher of the distillation methods is made."""

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        logits = self.classify(images)
        return StepOutput(logits, {"cross_entropy": functional.cross_entropy(logits, labels)})
