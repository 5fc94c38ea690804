"""Attention maps of feature maps: what attention distillation aligns."""

import torch
from torch import Tensor
from torch.nn import functional

NORM_EPSILON = 1e-6
"""Keeps the norm of an all-zero map from dividing by zero; the authors' value."""


def attention_map(features: Tensor) -> Tensor:
    """The channel energy of a feature map, divided per image by its spatial L2 norm.

    Equation 1 of arXiv 2204.09975 with p = 2: A = sum_c |F_c|^2 / (||sum_c |F_c|^2||_2 + 1e-6).

    Args:
        features: [B, C, H, W].

    Returns:
        [B, 1, H, W], non-negative.
    """
    energy = features.float().square().sum(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(energy, dim=(2, 3), keepdim=True)
    normalised: Tensor = energy / (norm + NORM_EPSILON)
    return normalised


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [B, C, H, W] to [B, C, *size].

    Where the grid divides evenly, as between stages of most networks, plain pooling gives the same
    numbers and, unlike the adaptive kind, a deterministic gradient on CUDA.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return functional.avg_pool2d(maps, (height // size[0], width // size[1]))
    return functional.adaptive_avg_pool2d(maps, size)


def weights_per_tap(
    given: tuple[float, ...] | None, profile: tuple[float, float, float], taps: int
) -> tuple[float, ...]:
    """The weight of each tap's node loss.

    Published weights are for three taps: first, middle, last. For another number the profile is
    stretched: the ends keep theirs, every tap between has the middle's, and the sum is scaled to
    stay what it is for three, so that the node loss keeps its strength beside the cross-entropy.

    Args:
        given: What the request says; used as it is.
        profile: The published weights.
        taps: How many taps the network has.

    Raises:
        ValueError: `given` has another length than there are taps.
    """
    if given is not None:
        if len(given) != taps:
            raise ValueError(f"expected {taps} node weights, one per tap, got {len(given)}")
        return given
    first, middle, last = profile
    stretched = [middle] if taps == 1 else [first, *[middle] * (taps - 2), last]
    scale = sum(profile) / sum(stretched)
    return tuple(weight * scale for weight in stretched)
