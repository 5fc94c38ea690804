"""Channel Lipschitz pruning (CLP; Zheng et al., ECCV 2022, arXiv 2208.03111). Needs no data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sanitizer.errors import InvalidSpec

MIN_CONVOLUTIONS = 2
"""Without batch norms. One alone cuts a transformer's image into patches; a backdoor that sits in
attention is not found there."""


@dataclass(frozen=True)
class ScaledConvolution:
    """A convolution and the batch norm after it, which the bound takes as one linear map."""

    convolution: nn.Conv2d
    norm: _BatchNorm | None


def prune_by_lipschitz_bound(
    network: nn.Module, shape: Sequence[int], deviations: float
) -> dict[str, float]:
    """Takes away each channel whose bound lies far above those of its layer.

    The rule of arXiv 2208.03111: channel k of layer l goes if its bound is more than
    mean + u * standard deviation over the layer's channels.

    Args:
        network: Changed in place, and put into eval mode.
        shape: Channels, height and width of its images.
        deviations: The paper's u.

    Returns:
        `pruned_channels`, `channels` (those looked at), `layers`.

    Raises:
        InvalidSpec: The network has neither batch norms after convolutions, nor two convolutions.
    """
    layers = find_layers(network, shape)
    pruned = channels = 0
    for layer in layers:
        bounds = channel_bounds(layer)
        channels += len(bounds)
        if len(bounds) < 2:
            continue  # alone, it has no standard deviation
        outliers = bounds > bounds.mean() + deviations * bounds.std()
        _take_away(layer, outliers)
        pruned += int(outliers.sum())
    return {
        "pruned_channels": float(pruned),
        "channels": float(channels),
        "layers": float(len(layers)),
    }


def channel_bounds(layer: ScaledConvolution) -> Tensor:
    """Upper bound of each channel's Lipschitz constant, float64 [C], on the CPU.

    As in arXiv 2208.03111: the spectral norm of the channel's kernel as a matrix of
    [inputs, height * width], times |gamma| / sqrt(variance + epsilon) of the batch norm.
    """
    # In 64 bits on the CPU: every device agrees on what lies above the limit.
    kernels = layer.convolution.weight.detach().double().cpu().flatten(2)
    bounds: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    norm = layer.norm
    if norm is not None and norm.running_var is not None:
        deviation = (norm.running_var.double().cpu() + norm.eps).sqrt()
        bounds = bounds * norm.weight.detach().double().cpu().abs() / deviation
    return bounds


def find_layers(network: nn.Module, shape: Sequence[int]) -> list[ScaledConvolution]:
    """The convolutions of a network, each with the first batch norm that runs after it.

    So do the authors pair them, by the order in which they are defined; the order of a forward pass
    is the same for their networks, and right for others too. In a pre-activation network the norm
    scales the sum of a block, of which the convolution is the newest part. A convolution without a
    norm is left alone, unless there is no norm at all, as in VGG: then the kernels alone count.

    Raises:
        InvalidSpec: As `prune_by_lipschitz_bound`.
    """
    network.eval()
    weight = next(network.parameters())
    image = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    with _noting_order(network) as order, torch.no_grad():
        network(image)
    paired = []
    newest: nn.Conv2d | None = None
    for module in order:
        if isinstance(module, nn.Conv2d):
            newest = module
        elif newest is not None and newest.out_channels == module.num_features:
            paired.append(ScaledConvolution(newest, module))
            newest = None
    if paired:
        return paired
    alone = [ScaledConvolution(m, None) for m in order if isinstance(m, nn.Conv2d)]
    if len(alone) < MIN_CONVOLUTIONS:
        raise InvalidSpec(
            "method clp compares the channels of convolutions, and this network has "
            f"{len(alone)} of them and no batch norm after one. Use a method that trains on clean "
            "images instead, such as finetune, nad or argd.",
            method="clp",
            convolutions=len(alone),
        )
    return alone


@contextmanager
def _noting_order(network: nn.Module) -> Iterator[list[nn.Conv2d | _BatchNorm]]:
    """A list that a forward pass fills with its convolutions and batch norms, in their order."""
    order: list[nn.Conv2d | _BatchNorm] = []

    def note(module: Any, *_: Any) -> None:
        order.append(module)

    handles = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, _BatchNorm) and module.affine)
    ]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _take_away(layer: ScaledConvolution, channels: Tensor) -> None:
    """Makes channels constantly zero; `channels` is bool [C]."""
    last = layer.convolution if layer.norm is None else layer.norm
    last.weight[channels.to(last.weight.device)] = 0
    if last.bias is not None:
        last.bias[channels.to(last.bias.device)] = 0
