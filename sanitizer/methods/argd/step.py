"""Attention relation graph distillation (IJCAI 2022, arXiv 2204.09975)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sanitizer.methods.argd.losses import RelationEmbedding, edge_loss, node_loss
from sanitizer.methods.attention import weights_per_tap
from sanitizer.methods.distillation import DistillationStep
from sanitizer.networks.taps import TapPoint
from sanitizer.spec import ArgdConfig

NODE_WEIGHTS = (2000.0, 5000.0, 2000.0)
"""The ARGD authors' weights for three taps of a WRN-16-1."""


class ArgdStep(DistillationStep):
    """Aligns the student's attention relation graph with the teacher's: nodes, edges, embedding."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        points: Sequence[TapPoint],
        config: ArgdConfig,
        generator: torch.Generator,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(student, teacher, points, precision)
        taps = len(self.points)
        self.config = config
        self.node_weights = weights_per_tap(config.node_weights, NODE_WEIGHTS, taps)
        device = next(student.parameters()).device
        self.embedding = RelationEmbedding(taps, taps, config.embedding_dim, generator).to(device)

    def align(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Mapping[str, Tensor]:
        losses = {"node": node_loss(student, teacher, self.node_weights)}
        if self.config.edge_weight:
            losses["edge"] = self.config.edge_weight * edge_loss(student, teacher)
        if self.config.embedding_weight:
            losses["embedding"] = (
                self.config.embedding_weight * self.embedding(student, teacher).sum()
            )
        return losses
