"""Attention maps of feature maps: what attention distillation aligns."""

from typing import Any

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
        [B, 1, H, W], non-negative; float32, or float64 where `features` are.
    """
    attention: Tensor = _AttentionMap.apply(features)
    return attention


class _AttentionMap(torch.autograd.Function):
    """The map and its gradient, each with one pass over the features.

    Feature maps are the largest tensors of a step. Written as plain operations, their squares would
    be stored in float32, and read and written again on the way back.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        dtype = torch.promote_types(features.dtype, torch.float32)
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=dtype)
        energy = length.square_()
        norm = torch.linalg.vector_norm(energy, dim=(2, 3), keepdim=True)
        attention: Tensor = energy.div_(norm + NORM_EPSILON)
        ctx.save_for_backward(features, attention, norm)
        return attention

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # With E the energy, n its norm, d = n + epsilon, A = E / d:
        # dL/dE = (dL/dA - A <dL/dA, A> d / n) / d, and dL/dF = 2 F dL/dE.
        features, attention, norm = ctx.saved_tensors
        divisor = norm + NORM_EPSILON
        along = (gradient * attention).sum(dim=(2, 3), keepdim=True)
        # A map of zeros has no direction; its gradient is 0, and not 0 / 0.
        along = along * (divisor / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        energy_gradient = torch.addcmul(gradient, attention, along, value=-1) * (2 / divisor)
        scaled: Tensor = features * energy_gradient.to(features.dtype)
        return scaled


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [B, C, H, W] to [B, C, *size].

    Where the grid divides evenly, as between stages of most networks, plain pooling gives the same
    numbers and, unlike the adaptive kind, a deterministic gradient on CUDA; so does repeating the
    cells where the finer grid is the one that is asked for.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if size[0] % height == 0 and size[1] % width == 0:
        repeats = (size[0] // height, size[1] // width)
        cells = maps[:, :, :, None, :, None]
        return cells.expand(-1, -1, -1, repeats[0], -1, repeats[1]).reshape(*maps.shape[:2], *size)
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
