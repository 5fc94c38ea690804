"""Attention relation graph distillation (IJCAI 2022, arXiv 2204.09975)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sanitizer.methods.argd.losses import RelationEmbedding, edge_loss, node_loss
from sanitizer.methods.attention import weights_per_tap
from sanitizer.methods.distillation import DistillationStep
from sanitizer.networks.taps import TapPoint
from sanitizer.parallel.group import ALONE, Group
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
        group: Group = ALONE,
    ) -> None:
        super().__init__(
            student,
            teacher,
            chosen(points, config.taps),
            precision,
            group,
            label_smoothing=config.label_smoothing,
        )
        taps = len(self.points)
        self.config = config
        weights = weights_per_tap(config.node_weights, NODE_WEIGHTS, taps)
        self.node_weights = tuple(config.node_scale * weight for weight in weights)
        like = next(student.parameters())
        trained = config.projections == "trained"
        self.embedding = RelationEmbedding(
            taps, taps, config.embedding_dim, generator, trained=trained
        ).to(like.device, torch.promote_types(like.dtype, torch.float32))
        if trained and config.embedding_weight:
            self.network = _WithProjections(student, self.embedding)
            for parameter in self.embedding.parameters():
                # Everybody has their whole gradient, and the loop adds up what everybody has.
                parameter.register_hook(  # type: ignore[no-untyped-call]  # torch's own
                    lambda gradient: gradient / group.size
                )

    def align(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Mapping[str, Tensor]:
        losses = {}
        if self.config.node_scale:
            losses["node"] = node_loss(student, teacher, self.node_weights)
        if self.config.edge_weight:
            losses["edge"] = self.config.edge_weight * edge_loss(student, teacher)
        if self.config.embedding_weight:
            losses["embedding"] = (
                self.config.embedding_weight * self.embedding(student, teacher).sum()
            )
        return losses


class _WithProjections(nn.Module):
    """The student, with the projections as further parameters to train."""

    def __init__(self, student: nn.Module, embedding: RelationEmbedding) -> None:
        super().__init__()
        self.student = student
        self.embedding = embedding

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes], of the student."""
        logits: Tensor = self.student(images)
        return logits


def chosen(points: Sequence[TapPoint], indices: Sequence[int] | None) -> tuple[TapPoint, ...]:
    """The taps of a request, in their own order.

    Args:
        points: All that the network has.
        indices: Which of them, from 0; None: all.

    Raises:
        ValueError: There is no such tap.
    """
    if indices is None:
        return tuple(points)
    if max(indices) >= len(points):
        raise ValueError(f"expected taps below {len(points)}, got {max(indices)}")
    return tuple(points[index] for index in sorted(indices))
