"""Training and measuring in several processes gives what one process gives."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sanitizer.attacks.trigger import make_trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import LoopHooks, train
from sanitizer.methods.plan import Bench, ChangingStage, plan
from sanitizer.networks.registry import build_network
from sanitizer.networks.taps import find_taps
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.report.model import Evaluation
from sanitizer.spec import METHOD_ADAPTER, PatchProbe, Training
from tests.sanitizer.builders import CORNER_PROBE, digits
from tests.sanitizer.parallel.conftest import Processes

CPU = torch.device("cpu")
IMAGES = 66
TRAINING = {
    "least_epoch_images": 0,
    "phases": [{"epochs": 2, "learning_rate": 0.05}],
    "batch_size": 32,  # and 2 in the last: of three processes one has none
    "crop_padding": 1,
    "cutout_size": 2,
}
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"name": "finetune", "training": TRAINING},
    "nad": {"name": "nad", "teacher": TRAINING, "student": TRAINING},
    "argd": {"name": "argd", "preset": "paper", "teacher": TRAINING, "student": TRAINING},
    "argd, trained projections": {
        "name": "argd",
        "preset": "paper",
        "teacher": TRAINING,
        "student": TRAINING,
        "projections": "trained",
    },
    "argd, hardened": {
        "name": "argd",
        "preset": "default",
        "teacher": TRAINING,
        "student": TRAINING,
        "hardening": {
            "rho": 0.5,
            "ascent_share": 0.6,
            "least_ascent_images": 2,
            "perturbation": 20,
            "perturbed_share": 0.3,
            "random_triggers": True,
        },
        "student_hardening": {
            "rho": 0.5,
            "ascent_share": 0.05,  # of three processes one has none
            "least_ascent_images": 2,
            "perturbation": 20,
            "perturbed_share": 0.3,
            "random_triggers": True,
            "trigger_candidates": 3,
        },
        "classifier_shift": 0.01,
    },
    "fine_pruning": {"name": "fine_pruning", "training": TRAINING},
    "anp": {"name": "anp", "mask_training": TRAINING, "threshold": 0.9},
    "ft_sam": {"name": "ft_sam", "training": TRAINING, "rho": 0.5},
    "fst": {"name": "fst", "training": TRAINING, "alpha": 0.01},
    "i_bau": {
        "name": "i_bau",
        "training": {
            **TRAINING,
            "optimizer": "adam",
            "least_epoch_images": 0,
            "phases": [{"epochs": 2, "learning_rate": 1e-3}],
        },
        "perturbed_share": 0.3,
    },
    "mcr": {"name": "mcr", "endpoint": TRAINING, "curve": {**TRAINING, "weight_decay": 0.01}},
}


class Doubles:
    """Batches in 64 bits.

    With 32, one value that lies at the kink of a ReLU within rounding changes a gradient by a
    thousandth; two runs that only sum in another order then part within a few steps.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.steps_per_epoch = batches.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches.epoch(epoch, start_step):
            yield images.double(), labels


class Figures(LoopHooks):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:  # noqa: ARG002
        self.values.append({name: value for name, value in values.items() if name != "seconds"})


def train_all(group: Group, method: dict[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """The student's weights after all stages of a method, and the figures of each epoch."""
    network = build_network("wrn-10-1", 10, 1, generator=make_generator(0)).double()
    taps = find_taps(network, "wrn-10-1", (8, 8), 1)
    image_set = ImageSet.from_arrays(*digits(0, IMAGES))
    bench = Bench(
        network,
        deepcopy(network),
        taps,
        seed=3,
        group=group,
        clean=image_set,
        suspect=deepcopy(network),
    )
    hooks = Figures()
    for stage in plan(METHOD_ADAPTER.validate_python(method)):
        if isinstance(stage, ChangingStage):
            stage.change(bench, image_set, lambda _images: None)
            continue
        seed = (3, stage.stage.value)
        batches = Batches(image_set, stage.training, 32, CPU, seed, group=group)
        step = stage.make_step(bench)
        train(step, Doubles(batches), stage.training, seed, hooks=hooks)
        stage.finish(bench, step)
    return bench.student.state_dict(), hooks.values


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    """A method, and what one process makes of it."""
    chosen = METHODS[request.param]
    return chosen, train_all(ALONE, chosen)


@pytest.mark.parametrize("size", [2, 3])
def test_each_method_gives_the_weights_and_figures_of_one_process(
    processes: Processes, method: tuple[dict[str, Any], Any], size: int
) -> None:
    chosen, (expected, figures) = method
    results = processes.together(size, train_all, chosen)
    for state, values in results:
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(state[name], value, rtol=1e-6, atol=1e-8), name
            assert torch.equal(state[name], results[0][0][name]), name
        assert len(values) == len(figures)
        for mine, theirs in zip(values, figures, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6)


def measure(group: Group, images: int) -> tuple[Evaluation, int]:
    network = build_network("wrn-10-1", 10, 1, generator=make_generator(0))
    probe = PatchProbe.model_validate(CORNER_PROBE)
    trigger = make_trigger(probe, input_size=(8, 8), channels=1, num_classes=10)
    seen: list[int] = []
    image_set = ImageSet.from_arrays(*digits(0, images))
    found = evaluate(
        *(network, image_set, [trigger]),
        num_classes=10,
        device=CPU,
        on_images=seen.append,
        group=group,
    )
    return found, sum(seen)


@pytest.mark.parametrize("images", [100, 2])
def test_everybody_has_the_figures_of_all_images(processes: Processes, images: int) -> None:
    expected, _ = measure(ALONE, images)
    assert [found for found, _ in processes.together(3, measure, images)] == [expected] * 3


def test_progress_counts_what_the_others_look_at_meanwhile(processes: Processes) -> None:
    _, seen = measure(ALONE, 100)
    told = [counted for _, counted in processes.together(2, measure, 100)]
    assert sum(told) / 2 == seen


class Masks(nn.Module):
    """Keeps what its dropout lets pass."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        self.linear = nn.Linear(64, 10)
        self.kept: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.kept.append(self.dropout(torch.ones_like(images)))
        logits: Tensor = self.linear(self.kept[-1])
        return logits


def drop(group: Group) -> Tensor:
    network = Masks()
    training = Training.model_validate(TRAINING)
    image_set = ImageSet.from_arrays(*digits(0, 64))
    batches = Batches(image_set, training, 32, CPU, (0,), group=group)
    train(FinetuneStep(network, group=group), batches, training, (0,))
    return torch.cat(network.kept)


def test_each_process_drops_out_other_values_and_the_same_ones_again(processes: Processes) -> None:
    first, second = processes.together(2, drop)
    assert not torch.equal(first, second)
    again = processes.together(2, drop)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
