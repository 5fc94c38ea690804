"""Batch norm of shares against torch's own of the whole batch, in real processes over gloo."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sanitizer.parallel.batch_norm import whole_batch_norm
from sanitizer.parallel.group import ALONE, Group
from tests.sanitizer.parallel.conftest import Processes

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the largest value of each tensor. Rounding alone: the sums are taken in another order."""


def build(kind: type[nn.Module], dtype: torch.dtype, **options: Any) -> nn.Module:
    module = kind(6, **options)
    for number, parameter in enumerate(module.parameters(), 1):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    # As under autocast, parameters keep 32 bits beside values of 16.
    return module if dtype is torch.bfloat16 else module.to(dtype)


def pass_twice(
    group: Group, module: nn.Module, values: Tensor, slopes: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """State and gradients after two batches, and this process's rows: outputs and gradients."""
    module = deepcopy(module)
    outputs, gradients = [], []
    rows = group.share(len(values))
    with whole_batch_norm(module, group):
        for batch in (values, values.square()):
            mine = batch[rows].clone(memory_format=torch.preserve_format).requires_grad_()
            output = module(mine)
            (output * slopes[rows]).sum().backward()
            assert mine.grad is not None
            outputs.append(output.detach())
            gradients.append(mine.grad)
    for parameter in module.parameters():
        if parameter.grad is not None:
            group.sum(parameter.grad)
    state = module.state_dict() | {
        f"gradient of {name}": parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return state, torch.stack(outputs), torch.stack(gradients)


def differ(mine: Tensor, other: Tensor) -> float:
    scale = other.double().abs().max().clamp(min=1e-30)
    return float((mine.double() - other.double()).abs().max() / scale)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "options"),
    [
        (nn.BatchNorm2d, (7, 6, 5, 4), torch.float64, {}),
        (nn.BatchNorm2d, (7, 6, 5, 4), torch.float32, {}),
        (nn.BatchNorm2d, (7, 6, 5, 4), torch.bfloat16, {}),
        (nn.BatchNorm2d, (2, 6, 5, 4), torch.float64, {}),
        (nn.BatchNorm2d, (7, 6, 5, 4), torch.float64, {"affine": False}),
        (nn.BatchNorm2d, (7, 6, 5, 4), torch.float64, {"momentum": None, "eps": 1e-3}),
        (nn.BatchNorm2d, (7, 6, 5, 4), torch.float64, {"track_running_stats": False}),
        (nn.BatchNorm1d, (7, 6), torch.float64, {}),
    ],
    ids=["64", "32", "16", "no rows", "no parameters", "mean of all", "no statistics", "1d"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_shares_are_normalised_as_the_whole_batch_is(
    processes: Processes,
    size: int,
    kind: type[nn.Module],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    options: dict[str, Any],
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(shape, generator=generator) * 3 + 5).to(dtype)
    slopes = torch.randn(shape, generator=generator).to(dtype)
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    module = build(kind, dtype, **options)
    expected, outputs, gradients = pass_twice(ALONE, module, values, slopes)
    results = processes.together(size, pass_twice, module, values, slopes)
    tolerance = TOLERANCE[dtype]
    assert differ(torch.cat([share for _, share, _ in results], dim=1), outputs) <= tolerance
    assert differ(torch.cat([share for *_, share in results], dim=1), gradients) <= tolerance
    for state, *_ in results:
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert state[name].dtype == value.dtype
            assert differ(state[name], value) <= tolerance, name
            # Replicas do not drift apart: what all have is the same to the bit.
            assert torch.equal(state[name], results[0][0][name]), name


def normalise_in_eval(group: Group, module: nn.Module, values: Tensor) -> Tensor:
    module.eval()
    with whole_batch_norm(module, group):
        output: Tensor = module(values[group.share(len(values))])
    return output.detach()


def test_network_that_does_not_train_uses_its_running_statistics(processes: Processes) -> None:
    values = torch.randn((5, 6, 2, 2), generator=torch.Generator().manual_seed(0))
    module = build(nn.BatchNorm2d, torch.float32)
    shares = processes.together(2, normalise_in_eval, module, values)
    assert torch.equal(torch.cat(shares), module.eval()(values))


def names_within_and_after(group: Group) -> tuple[list[str], list[str], bool]:
    network = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6))
    with whole_batch_norm(network, group):
        within = list(network.state_dict())
    hidden = any("forward" in vars(module) for module in network.modules())
    return within, list(network.state_dict()), hidden


def test_names_stay_and_nothing_is_left_on_the_network(processes: Processes) -> None:
    within, after, hidden = names_within_and_after(ALONE)
    assert not hidden
    assert within == after
    assert processes.together(2, names_within_and_after) == [(within, after, False)] * 2
