"""The three losses of attention relation graph distillation (arXiv 2204.09975, section 3)."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.methods.argd.graph import edges
from sanitizer.methods.attention import pool_to


def node_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """sum_l w_l mse(A_l^student, A_l^teacher), equation 2.

    Args:
        student: Attention maps [B, 1, H_l, W_l], one per tap.
        teacher: The same shapes.
        weights: One per tap.

    Returns:
        A scalar.
    """
    terms = [
        weight * functional.mse_loss(mine, theirs)
        for mine, theirs, weight in zip(student, teacher, weights, strict=True)
    ]
    return torch.stack(terms).sum()


def edge_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of the squared difference of normalised edges, equation 4; 0 for one node."""
    if len(student) < 2:
        return student[0].new_zeros(())
    return functional.mse_loss(edges(student), edges(teacher))


class RelationEmbedding(nn.Module):
    """How strongly each teacher node relates to each student node, by queries and keys.

    The projections are random, and not trained unless that is asked for: the optimizer of the
    authors' code holds the student alone. Batch normalisation uses the statistics of the batch,
    always.

    Args:
        teacher_nodes: T.
        student_nodes: S.
        dim: d, of queries and keys.
        generator: Where the projections come from.
        trained: Whether they are parameters, and not buffers.
    """

    query_weight: Tensor
    query_bias: Tensor
    query_scale: Tensor
    query_shift: Tensor
    key_weight: Tensor
    key_bias: Tensor
    key_scale: Tensor
    key_shift: Tensor
    bilinear_weight: Tensor
    bilinear_bias: Tensor
    bilinear_scale: Tensor
    bilinear_shift: Tensor
    teacher_position: Tensor
    student_position: Tensor

    def __init__(
        self,
        teacher_nodes: int,
        student_nodes: int,
        dim: int,
        generator: torch.Generator,
        *,
        trained: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim

        def uniform(*shape: int, fan_in: int) -> Tensor:
            # The default of a linear layer, for weight and bias alike.
            bound = 1 / sqrt(fan_in)
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)

        def xavier(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=generator) * sqrt(2 / (rows + dim))

        projections = {
            "query_weight": uniform(teacher_nodes, dim, fan_in=1),
            "query_bias": uniform(teacher_nodes, dim, fan_in=1),
            "query_scale": torch.ones(teacher_nodes, dim),
            "query_shift": torch.zeros(teacher_nodes, dim),
            "key_weight": uniform(student_nodes, dim, fan_in=1),
            "key_bias": uniform(student_nodes, dim, fan_in=1),
            "key_scale": torch.ones(student_nodes, dim),
            "key_shift": torch.zeros(student_nodes, dim),
            "bilinear_weight": uniform(teacher_nodes * dim, dim, fan_in=dim),
            "bilinear_bias": uniform(teacher_nodes * dim, fan_in=dim),
            "bilinear_scale": torch.ones(teacher_nodes * dim),
            "bilinear_shift": torch.zeros(teacher_nodes * dim),
            "teacher_position": xavier(teacher_nodes),
            "student_position": xavier(student_nodes),
        }
        for name, value in projections.items():
            if trained:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def attention(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The weight of each student node for each teacher node.

        softmax_s((<BN(W_b key_s)_t, query_t> + <p_t, p_s>) / sqrt(d)), equations 5 and 6.

        Returns:
            [B, T, S]; sums to 1 over S.
        """
        queries = self._project(teacher, "query")
        keys = self._project(student, "key").relu()
        batch, student_nodes = keys.shape[:2]
        mapped = functional.linear(keys, self.bilinear_weight, self.bilinear_bias)
        # One batch of all student nodes: the statistics are taken over images and nodes together.
        mapped = _batch_norm(mapped.flatten(0, 1), self.bilinear_scale, self.bilinear_shift)
        mapped = mapped.reshape(batch, student_nodes, -1, self.dim)
        logits = torch.einsum("bstd,btd->bts", mapped, queries)
        positions = self.teacher_position @ self.student_position.T
        return ((logits + positions) / sqrt(self.dim)).softmax(dim=2)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The embedding loss of each teacher node, equation 7; their sum is what is minimised.

        sum_s att[b,t,s] mean((value_s - value_t)^2), mean over the batch; values are the squared
        attention maps on the teacher node's grid, of L2 norm 1.

        Args:
            student: S attention maps [B, 1, H_s, W_s].
            teacher: T attention maps [B, 1, H_t, W_t].

        Returns:
            [T].
        """
        attention = self.attention(student, teacher)
        mine, theirs = [node.square() for node in student], [node.square() for node in teacher]
        terms = []
        for index, node in enumerate(theirs):
            grid = (node.shape[2], node.shape[3])
            target = functional.normalize(node.flatten(2), dim=2)
            values = torch.cat([pool_to(other, grid) for other in mine], dim=1)
            values = functional.normalize(values.flatten(2), dim=2)
            distances = (values - target).square().mean(dim=2)
            terms.append((attention[:, index] * distances).sum(dim=1).mean())
        return torch.stack(terms)

    def _project(self, nodes: Sequence[Tensor], name: str) -> Tensor:
        """BN(W_n mean(A_n) + b_n) for every node n: [B, N, d]."""
        means = torch.stack([node.mean(dim=(1, 2, 3)) for node in nodes], dim=1)
        weight: Tensor = getattr(self, f"{name}_weight")
        bias: Tensor = getattr(self, f"{name}_bias")
        projected = means.unsqueeze(2) * weight + bias
        scale: Tensor = getattr(self, f"{name}_scale")
        shift: Tensor = getattr(self, f"{name}_shift")
        return _batch_norm(projected, scale, shift)


def _batch_norm(values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch normalisation over dimension 0 alone, with the batch's own statistics."""
    normalised = functional.batch_norm(
        values.flatten(1), None, None, scale.flatten(), shift.flatten(), training=True
    )
    return normalised.view_as(values)
