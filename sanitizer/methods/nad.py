"""Neural attention distillation (Li et al., ICLR 2021, arXiv 2101.05930)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sanitizer.methods.argd.losses import node_loss
from sanitizer.methods.attention import weights_per_tap
from sanitizer.methods.distillation import DistillationStep
from sanitizer.networks.taps import TapPoint
from sanitizer.parallel.group import ALONE, Group
from sanitizer.spec import NadConfig

NODE_WEIGHTS = (500.0, 1000.0, 1000.0)
"""For three taps of a WRN-16-1, of the ARGD authors' rerun; NAD's own code has 0, 0 and 5000."""


class NadStep(DistillationStep):
    """The node loss alone."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        points: Sequence[TapPoint],
        config: NadConfig,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
    ) -> None:
        super().__init__(student, teacher, points, precision, group)
        self.node_weights = weights_per_tap(config.node_weights, NODE_WEIGHTS, len(self.points))

    def align(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return {"node": node_loss(student, teacher, self.node_weights)}
