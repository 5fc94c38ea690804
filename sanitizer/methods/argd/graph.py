"""Attention relation graphs: attention maps as nodes, distances between them as edges."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from sanitizer.methods.attention import pool_to

SQUARED_DISTANCE_FLOOR = 1e-12
"""Squared distances are clamped here, so that nothing is divided by zero; the authors' value."""


def edge(first: Tensor, second: Tensor) -> Tensor:
    """The normalised squared distance between two nodes, per image.

    Equation 3 of arXiv 2204.09975, as the authors compute it: the larger map is average-pooled
    to the smaller grid, and the squared distances are divided by their maximum over the batch.

    Args:
        first: [B, 1, H, W].
        second: [B, 1, H', W'].

    Returns:
        [B], in (0, 1].
    """
    grid = min(_grid(first), _grid(second), key=lambda size: size[0] * size[1])
    difference = pool_to(first, grid) - pool_to(second, grid)
    squared = difference.square().flatten(1).sum(dim=1).clamp(min=SQUARED_DISTANCE_FLOOR)
    return squared / squared.max()


def edges(nodes: Sequence[Tensor]) -> Tensor:
    """All edges of a graph.

    Args:
        nodes: T attention maps, [B, 1, H_t, W_t].

    Returns:
        [P, B] for the P = T (T - 1) / 2 pairs (0, 1), (0, 2), ..., (1, 2), ...
    """
    pairs = [edge(first, second) for first, second in combinations(nodes, 2)]
    return torch.stack(pairs) if pairs else nodes[0].new_zeros((0, nodes[0].shape[0]))


def _grid(node: Tensor) -> tuple[int, int]:
    return node.shape[2], node.shape[3]
