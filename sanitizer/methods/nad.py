"""Neural attention distillation (Li et al., ICLR 2021, arXiv 2101.05930)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sanitizer.methods.argd.losses import node_loss
from sanitizer.methods.attention import weights_per_tap
from sanitizer.methods.distillation import DistillationStep
from sanitizer.networks.taps import TapPoint
from sanitizer.spec import NadConfig

NODE_WEIGHTS = (500.0, 1000.0, 1000.0)
"""The weights of the NAD authors for three taps of a WRN-16-1."""


class NadStep(DistillationStep):
    """The node loss alone."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        points: Sequence[TapPoint],
        config: NadConfig,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(student, teacher, points, precision)
        self.node_weights = weights_per_tap(config.node_weights, NODE_WEIGHTS, len(self.points))

    def align(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return {"node": node_loss(student, teacher, self.node_weights)}
