from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.mcr import CurveNetwork, CurveStep, recompute_statistics
from sanitizer.randomness import make_generator
from sanitizer.spec import McrConfig
from tests.sanitizer.methods import runs
from tests.sanitizer.methods.networks import (
    batch,
    in_doubles,
    share_right,
    small_transformer,
    trained,
)

TRAINING: dict[str, Any] = {
    "phases": [{"epochs": 2, "learning_rate": 0.01}],
    "batch_size": 40,
    **runs.PLAIN,
}
METHOD: dict[str, Any] = {"name": "mcr", "endpoint": TRAINING, "curve": TRAINING}


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def moved_bend(curve: CurveNetwork) -> dict[str, Tensor]:
    """The bend, away from where it begins."""
    generator = make_generator(3)
    with torch.no_grad():
        for parameter in curve.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise)
    return weights(curve.network)


def point(start: Tensor, bend: Tensor, end: Tensor, t: float) -> Tensor:
    """By de Casteljau: twice along straight lines."""
    first, second = start + t * (bend - start), bend + t * (end - bend)
    return first + t * (second - first)


# --- The curve -----------------------------------------------------------------------------------


def test_bend_begins_halfway_between_the_ends() -> None:
    start, end = weights(in_doubles(0)), weights(in_doubles(1))
    curve = CurveNetwork(in_doubles(0), in_doubles(1), 0.5)
    for name, bend in weights(curve.network).items():
        torch.testing.assert_close(bend, (start[name] + end[name]) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_points_are_those_of_the_curve_and_the_bend_comes_back(t: float) -> None:
    start, end = weights(in_doubles(0)), weights(in_doubles(1))
    curve = CurveNetwork(in_doubles(0), in_doubles(1), 0.5)
    bend = moved_bend(curve)
    with curve.at(t):
        found = weights(curve.network)
    for name, value in found.items():
        expected = point(start[name], bend[name], end[name], t)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14, msg=name)
    for name, value in weights(curve.network).items():
        assert torch.equal(value, bend[name])


def test_bend_comes_back_from_a_failure_too() -> None:
    curve = CurveNetwork(in_doubles(0), in_doubles(1), 0.5)
    bend = moved_bend(curve)
    with pytest.raises(RuntimeError, match="in between"), curve.at(0.3):
        raise RuntimeError("in between")
    assert all(torch.equal(value, bend[name]) for name, value in weights(curve.network).items())


def test_what_is_measured_is_the_point_at_the_position() -> None:
    curve = CurveNetwork(in_doubles(0), in_doubles(1), 0.3)
    moved_bend(curve)
    curve.eval()
    images, _ = batch()
    with torch.inference_mode():
        measured = curve(images)
    with curve.at(0.3):
        expected = curve.network(images)
    torch.testing.assert_close(measured, expected.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_gradient_of_the_bend_is_that_of_the_curve_written_out(decay: float) -> None:
    start, end = weights(in_doubles(0)), weights(in_doubles(1))
    curve = METHOD["curve"] | {"weight_decay": decay}
    config = McrConfig.model_validate(METHOD | {"curve": curve})
    step = CurveStep(in_doubles(0), in_doubles(1), config, seed=7)
    bend = moved_bend(step.network)
    images, labels = batch()
    buffers = {name: value.clone() for name, value in step.network.network.named_buffers()}
    draw = make_generator(7, "curve", "position", 0)
    t = torch.rand((), generator=draw, dtype=torch.float64).item()
    assert 0.01 < t < 0.99

    leaves = {name: value.clone().requires_grad_() for name, value in bend.items()}
    at_t = {name: point(start[name], leaf, end[name], t) for name, leaf in leaves.items()}
    logits = functional_call(step.network.network, {**at_t, **buffers}, (images,))
    loss = functional.cross_entropy(logits, labels)
    decayed = sum(value.square().sum() for value in at_t.values()) * decay / 2
    expected = torch.autograd.grad(loss + decayed, list(leaves.values()))

    output = step.backward(images, labels)
    for (name, parameter), gradient in zip(
        step.network.network.named_parameters(), expected, strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)
        assert torch.equal(parameter, bend[name])
    torch.testing.assert_close(output.loss, loss.detach(), rtol=1e-12, atol=0)


def test_each_step_is_at_another_place_of_the_whole_curve() -> None:
    step = CurveStep(in_doubles(0), in_doubles(1), McrConfig(), seed=0)
    drawn = [step._draw() for _ in range(300)]
    assert np.histogram(drawn, bins=5, range=(0, 1))[0].min() > 35
    other = CurveStep(in_doubles(0), in_doubles(1), McrConfig(), seed=1)
    assert other._draw() != drawn[0]


# --- Statistics ----------------------------------------------------------------------------------


def first_norm(network: nn.Module) -> nn.BatchNorm2d:
    found = network.get_submodule("block1.layer.0.bn1")
    assert isinstance(found, nn.BatchNorm2d)
    return found


def seen_by_first_norm(network: nn.Module, images: ImageSet) -> Tensor:
    """[C, N H W]."""
    pixels = torch.from_numpy(images.images.copy()).float() / 255
    with torch.no_grad():
        found: Tensor = network.get_submodule("conv1")(pixels)
    return found.transpose(0, 1).flatten(1)


def recompute(network: nn.Module, images: ImageSet, batch_size: int = 40) -> Mapping[str, float]:
    return recompute_statistics(
        network,
        images,
        lambda _: None,
        batch_size=batch_size,
        seed=0,
        precision=torch.float32,
    )


def test_statistics_are_those_of_the_clean_images() -> None:
    network, images = trained(), runs.clean_images()
    expected = seen_by_first_norm(network, images)
    norm = first_norm(network)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.add_(5)
    told: list[int] = []
    found = recompute_statistics(
        network, images, told.append, batch_size=160, seed=0, precision=torch.float32
    )
    torch.testing.assert_close(norm.running_mean, expected.mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, expected.var(1), rtol=1e-4, atol=1e-6)
    assert sum(told) == len(images)
    assert found == {"batch_norms": 7}
    assert norm.momentum == 0.1
    assert not any(module.training for module in network.modules())


def test_means_are_those_of_all_images_where_they_are_many_batches() -> None:
    network, few = trained(), runs.clean_images()
    images = few.subset(np.tile(np.arange(len(few)), 3))
    expected = seen_by_first_norm(network, images).mean(1)
    recompute(network, images, batch_size=256)
    norm = first_norm(network)
    assert len(images) == 480  # one batch of 256 and a smaller one
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "sizes"), [(120, [40, 40, 40]), (130, [40, 40, 40, 10]), (121, [40, 40, 41])]
)
def test_statistics_come_from_batches_as_it_is_trained_on_and_from_no_single_image(
    images: int, sizes: list[int]
) -> None:
    network, seen = trained(), list[int]()
    norm = first_norm(network)
    handle = norm.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    recompute(network, runs.clean_images().subset(np.arange(images)), batch_size=40)
    handle.remove()
    assert seen == sizes


def test_network_whose_statistics_were_lost_gets_its_accuracy_back() -> None:
    network = trained()
    before = share_right(network)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.add_(3)
    assert share_right(network) < before - 0.3
    images = runs.clean_images()
    recompute(network, images)
    assert share_right(network) > before - 0.05


def test_images_that_lie_class_by_class_give_the_same_accuracy() -> None:
    images = runs.clean_images()
    by_class = images.subset(np.argsort(images.labels, kind="stable"))
    network = trained()
    before = share_right(network)
    recompute(network, by_class)
    assert share_right(network) > before - 0.05


def test_network_without_batch_norm_stays_as_it_is() -> None:
    network = small_transformer()
    before = deepcopy(network.state_dict())
    images = runs.clean_images()
    found = recompute(network, images)
    assert found == {"batch_norms": 0}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# --- Whole runs ----------------------------------------------------------------------------------


def test_trained_network_keeps_most_of_its_accuracy() -> None:
    network = trained()
    before = share_right(network)
    state, figures = runs.run(METHOD, network)
    assert len(figures) == 4
    network.load_state_dict(state)
    assert before > 0.85
    assert share_right(network) > before - 0.05


@pytest.mark.parametrize("position", [0, 1])
def test_ends_of_the_curve_are_the_suspect_and_its_fine_tuned_self(position: int) -> None:
    suspect = trained()
    state, _ = runs.run({**METHOD, "position": position}, suspect)
    tuned, _ = runs.run({"name": "finetune", "training": TRAINING}, suspect)
    # The fine-tuning of this method is a stage of another name, and so of other batches.
    for name, value in suspect.named_parameters():
        if position == 0:
            torch.testing.assert_close(state[name], value, rtol=0, atol=0)
        else:
            assert (state[name] - tuned[name]).norm() < (tuned[name] - value).norm()


@pytest.mark.parametrize("die_after", [1, 3])
def test_run_that_is_killed_ends_in_the_same_bits(die_after: int) -> None:
    whole, figures = runs.run(METHOD, trained())
    killed, again = runs.run(METHOD, trained(), die_after=die_after)
    assert runs.same(whole, killed)
    assert figures == again
