"""Batch normalisation over the whole batch, where each process has a share of it.

`torch.nn.SyncBatchNorm` does the same, but on GPUs alone, and in place of the modules that a
checkpoint names. Here the modules stay, and what they compute is exchanged for a while.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sanitizer.parallel.group import Group


@contextmanager
def whole_batch_norm(network: nn.Module, group: Group) -> Iterator[None]:
    """Lets every batch norm in a network normalise by the whole batch while it trains.

    Parameters, running statistics and names stay where they are; after the block all is as before.

    Args:
        network: Its forward passes must be made by every process of the group alike.
        group: Alone, nothing is changed.
    """
    changed = [m for m in network.modules() if isinstance(m, _BatchNorm)] if group.size > 1 else []
    try:
        for module in changed:
            # An attribute of the object hides the method of its class; removed, that is back.
            module.forward = partial(_forward, module, group)  # type: ignore[method-assign]
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _forward(module: _BatchNorm, group: Group, values: Tensor) -> Tensor:
    """As `_BatchNorm.forward`, with the statistics of everybody's values."""
    if not module.training and module.running_mean is not None:
        result: Tensor = type(module).forward(module, values)
        return result
    module._check_input_dim(values)  # type: ignore[no-untyped-call]  # torch's own
    kind = torch.promote_types(values.dtype, torch.float32)
    plain = torch.ones(values.shape[1], dtype=kind, device=values.device)
    weight = plain if module.weight is None else module.weight
    bias = torch.zeros_like(plain) if module.bias is None else module.bias
    normalised, mean, variance, count = _Normalise.apply(values, weight, bias, module.eps, group)
    if module.running_mean is not None and module.running_var is not None:
        factor: float | Tensor = 0.0 if module.momentum is None else module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if module.momentum is None:
                factor = 1.0 / module.num_batches_tracked.double()
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            for running, new in ((module.running_mean, mean), (module.running_var, unbiased)):
                running.copy_(running * (1 - factor) + new.to(running.dtype) * factor)
    out: Tensor = normalised
    return out


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var of everybody's x.

    The sums are those of Ioffe and Szegedy (arXiv 1502.03167, section 3) over N values, of which
    each process has some. torch's own kernels do the passes over the data.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, epsilon: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`values` is [n, C, ...], n may be 0; also gives mean [C], variance [C] (biased), N."""
        channels = values.shape[1]
        own = values.numel() // channels
        message = torch.zeros(2 * channels + 1, dtype=torch.float64, device=values.device)
        if own:
            dims = [0, *range(2, values.dim())]
            variance, mean = torch.var_mean(values.to(weight.dtype), dim=dims, correction=0)
            message[0], message[1 : channels + 1], message[channels + 1 :] = own, mean, variance
        counts, means, variances = torch.split_with_sizes(
            group.stack(message), [1, channels, channels], dim=1
        )
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.epsilon, ctx.group = epsilon, group
        ctx.mark_non_differentiable(mean, variance, count)
        # What it is given as running statistics is what it normalises by.
        normalised = (
            functional.batch_norm(values, mean, variance, weight, bias, eps=epsilon)
            if own
            else torch.empty_like(values)
        )
        return normalised, mean, variance, count

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        gradient, values = gradients[0], ctx.saved_tensors[0]
        _, weight, mean, variance, count = ctx.saved_tensors
        of_values = torch.zeros_like(values)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        if values.numel():
            # For fixed statistics: gradient * weight / sqrt(var + eps), and the two sums that the
            # statistics' own gradients are made of.
            of_values, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                *(gradient.to(values.dtype), values, weight, mean, variance, None, None, False),
                ctx.epsilon,
                [True, True, True],
            )
        sums = ctx.group.sum(torch.stack([of_weight, of_bias]).double())
        inverse = (variance.double() + ctx.epsilon).rsqrt()
        # d loss / dx = w / s (g - sum(g) / N - xhat sum(g xhat) / N) with xhat = (x - mean) / s: of
        # x that is a slope and an offset per channel.
        scale = -weight.double() * inverse / count
        slope = scale * inverse * sums[0]
        offset = scale * sums[1] - slope * mean
        kind = torch.promote_types(values.dtype, torch.float32)
        slope, offset = (
            each.to(kind).view(1, -1, *[1] * (values.dim() - 2)) for each in (slope, offset)
        )
        of_values = of_values.to(kind).addcmul(values.to(kind), slope).add_(offset)
        return of_values.to(values.dtype), of_weight, of_bias, None, None
