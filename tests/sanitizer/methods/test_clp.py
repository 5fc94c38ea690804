import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.errors import InvalidSpec
from sanitizer.methods.clp import (
    ScaledConvolution,
    channel_bounds,
    find_layers,
    prune_by_lipschitz_bound,
)
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from tests.sanitizer.methods.networks import SHAPE, fresh, share_right, small_transformer, trained


def plain_bound(kernel: Tensor, scale: float, variance: float, epsilon: float) -> float:
    """Of one channel, from all of its singular values."""
    matrix = kernel.reshape(kernel.shape[0], -1).numpy() * abs(scale) / np.sqrt(variance + epsilon)
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values.max())


@pytest.mark.parametrize(("inputs", "groups", "side"), [(4, 1, 3), (6, 6, 3), (5, 1, 1)])
def test_bounds_are_the_largest_singular_values_of_scaled_kernels(
    inputs: int, groups: int, side: int
) -> None:
    generator = make_generator(1)
    convolution, norm = nn.Conv2d(inputs, 6, side, groups=groups), nn.BatchNorm2d(6, eps=0.01)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator))
        norm.weight.copy_(torch.randn(6, generator=generator))
        assert norm.running_var is not None
        norm.running_var.copy_(torch.rand(6, generator=generator))
    kernels, scales = convolution.weight.detach(), norm.weight.tolist()
    variances = norm.running_var.tolist()

    found = channel_bounds(ScaledConvolution(convolution, norm))
    expected = [plain_bound(kernels[k], scales[k], variances[k], 0.01) for k in range(6)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)

    alone = channel_bounds(ScaledConvolution(convolution, None))
    assert alone.tolist() == pytest.approx([plain_bound(k, 1, 1, 0) for k in kernels], rel=1e-5)


def test_what_lies_above_mean_and_deviations_is_what_goes() -> None:
    network = fresh()
    layers = find_layers(network, SHAPE)
    expected = []
    for layer in layers:
        bounds = channel_bounds(layer).tolist()
        limit = np.mean(bounds) + 1.5 * np.std(bounds, ddof=1)
        expected.append([k for k, bound in enumerate(bounds) if bound > limit])

    figures = prune_by_lipschitz_bound(network, SHAPE, 1.5)

    gone = [
        [k for k, scale in enumerate(layer.norm.weight.tolist()) if scale == 0]
        for layer in layers
        if layer.norm is not None
    ]
    assert gone == expected
    assert figures["pruned_channels"] == sum(map(len, expected)) > 0
    assert figures["channels"] == sum(layer.convolution.out_channels for layer in layers)
    assert figures["layers"] == len(layers)


def test_a_channel_made_to_dominate_is_taken_away_and_accuracy_comes_back() -> None:
    network = trained()
    before = share_right(network)
    norm = network.get_submodule("block3.layer.0.bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[5] = 60
        norm.bias[5] = 60
    assert share_right(network) < before - 0.2

    figures = prune_by_lipschitz_bound(network, SHAPE, 3)

    assert figures["pruned_channels"] >= 1
    assert norm.weight[5] == norm.bias[5] == 0
    assert share_right(network) > before - 0.05


def test_a_sound_network_keeps_its_accuracy_at_the_published_setting() -> None:
    network = trained()
    before = share_right(network)
    prune_by_lipschitz_bound(network, SHAPE, 3)
    assert before > 0.8
    assert share_right(network) > before - 0.05


def paths(network: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, str | None]]:
    names = {module: path for path, module in network.named_modules()}
    return [
        (names[layer.convolution], None if layer.norm is None else names[layer.norm])
        for layer in find_layers(network, shape)
    ]


def test_norms_of_a_preactivation_network_go_with_the_newest_convolution() -> None:
    assert paths(fresh(), SHAPE) == [
        ("conv1", "block1.layer.0.bn1"),
        ("block1.layer.0.conv1", "block1.layer.0.bn2"),
        ("block1.layer.0.conv2", "block2.layer.0.bn1"),
        ("block2.layer.0.conv1", "block2.layer.0.bn2"),
        ("block2.layer.0.conv2", "block3.layer.0.bn1"),
        ("block3.layer.0.conv1", "block3.layer.0.bn2"),
        ("block3.layer.0.conv2", "bn1"),
    ]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_every_norm_is_found_where_each_follows_its_convolution(name: str) -> None:
    network = build_network(name, 10, 3, generator=make_generator(0))
    norms = [path for path, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    found = paths(network, (3, 32, 32))
    assert sorted(norm for _, norm in found if norm is not None) == sorted(norms)
    weights = dict(network.named_modules())
    for convolution, norm in found:
        assert norm is not None
        assert convolution.rpartition(".")[0] == norm.rpartition(".")[0]
        assert weights[convolution].out_channels == weights[norm].num_features


def test_without_norms_kernels_and_biases_go() -> None:
    outlier = nn.Conv2d(1, 8, 3)
    network = nn.Sequential(outlier, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    with torch.no_grad():
        # No channel stands out but that one.
        outlier.weight.fill_(0.1)
        network[2].weight.fill_(0.1)  # type: ignore[operator]  # a tensor
        outlier.weight[3] *= 50
    figures = prune_by_lipschitz_bound(network, SHAPE, 2)
    assert figures == {"pruned_channels": 1, "channels": 16, "layers": 2}
    assert not outlier.weight[3].any()
    assert outlier.bias is not None
    assert outlier.bias[3] == 0
    assert outlier.weight[2].any()


def test_a_transformer_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(InvalidSpec, match="such as finetune") as raised:
        prune_by_lipschitz_bound(small_transformer(), (3, 8, 8), 3)
    assert raised.value.data == {"method": "clp", "convolutions": 1}


def test_no_hook_is_left_on_the_network() -> None:
    network = fresh()
    find_layers(network, SHAPE)
    assert not any(module._forward_hooks for module in network.modules())
