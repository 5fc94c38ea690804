"""Copies of small networks, trained further: what was only hidden comes back."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.loader import Batches
from sanitizer.errors import TrainingDiverged
from sanitizer.evaluation.durability import (
    Delivered,
    control_class,
    measure_durability,
    retuning_of,
)
from sanitizer.evaluation.metrics import wilson
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import train
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.report.model import Durability, Retuned
from sanitizer.report.verdict import comes_back, is_regained
from sanitizer.spec import (
    ArgdConfig,
    AutoConfig,
    ClpConfig,
    FinetuneConfig,
    MethodConfig,
    PatchProbe,
    Phase,
    Policy,
    Probe,
)
from tests.sanitizer.evaluation.builders import PROBE, TARGET, images
from tests.sanitizer.evaluation.conftest import TRAINING


def delivered_of(network: nn.Module, *probes: Probe) -> Delivered:
    return Delivered(
        network=network,
        num_classes=10,
        clean=images(1000, 1300),
        measured=images(1300, 1700),
        probes=probes,
        training=retuning_of(FinetuneConfig(training=TRAINING)),
        seed=0,
        device=torch.device("cpu"),
    )


def without_seconds(durability: Durability) -> Durability:
    return durability.model_copy(update={"seconds": 0})


@pytest.fixture(scope="module")
def hidden(backdoored: nn.Module) -> nn.Module:
    """The backdoored network, its target's bias so low that the trigger no longer leads there."""
    network = deepcopy(backdoored)
    (*_, classifier) = (m for m in network.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        classifier.bias[TARGET] -= 20
    return network


@pytest.fixture(scope="module")
def found(hidden: nn.Module) -> Durability:
    return measure_durability(delivered_of(hidden, PROBE), {})


def test_a_backdoor_that_was_only_hidden_comes_back_on_clean_images(found: Durability) -> None:
    (probe,) = found.probes
    assert probe.delivered.value < 0.01
    assert probe.clean.value > 0.3
    assert comes_back(probe, Policy())
    assert (found.epochs, found.learning_rate) == (3, 0.01)
    assert (found.images, found.measured_images) == (300, 400)


def test_with_poisoned_images_it_comes_back_far_sooner_than_another_label_is_learned(
    found: Durability,
) -> None:
    (probe,) = found.probes
    assert (probe.target_class, probe.control_class) == (TARGET, TARGET + 1)
    assert probe.poisoned_images == 3  # a hundredth of 300
    assert probe.poisoned.value > probe.clean.value
    assert probe.control.value < 0.1
    assert is_regained(probe)


def test_in_a_clean_network_nothing_comes_back() -> None:
    network = build_network("wrn-10-1", 10, 1, make_generator(0))
    batches = Batches(images(0, 1000), TRAINING, 64, torch.device("cpu"), (0, "batches"))
    train(FinetuneStep(network), batches, TRAINING, (0, "network"))
    (probe,) = measure_durability(delivered_of(network, PROBE), {}).probes
    assert not comes_back(probe, Policy())
    assert max(probe.clean.value, probe.poisoned.value, probe.control.value) < 0.1


def test_the_network_that_is_delivered_stays_as_it_is(hidden: nn.Module) -> None:
    before = {name: torch.clone(value) for name, value in hidden.state_dict().items()}
    measure_durability(delivered_of(hidden), {})
    after: dict[str, Tensor] = hidden.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_without_a_trigger_the_clean_accuracy_is_told(hidden: nn.Module) -> None:
    done: dict[str, Retuned] = {}
    durability = measure_durability(delivered_of(hidden), done)
    assert list(done) == ["delivered", "clean"]
    assert durability.probes == []
    # Without a class that its bias shuts out, it does better.
    assert durability.clean_accuracy.value >= durability.accuracy.value


class Interrupted(Exception):
    pass


def test_what_was_interrupted_goes_on_with_the_next_retuning(
    hidden: nn.Module, found: Durability
) -> None:
    done: dict[str, Retuned] = {}
    work: list[float] = []

    def stop_at_the_third() -> None:
        if len(done) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        measure_durability(delivered_of(hidden, PROBE), done, on_retuned=stop_at_the_third)
    assert list(done) == ["delivered", "clean", "poisoned/trigger"]
    again = measure_durability(delivered_of(hidden, PROBE), done, work.append)
    assert without_seconds(again) == without_seconds(found)
    # The control alone: three epochs of 300 images, and 400 without and some with the trigger.
    tried = again.probes[0].control.total
    assert sum(work) == pytest.approx(3 * 300 * 3 + 400 + tried)


class ByCorners(nn.Module):
    """Calls an image whose first corner is bright a 3, one whose last is bright a 6, others a 0."""

    def forward(self, images: Tensor) -> Tensor:
        first, last = images[:, 0, 0, 0], images[:, 0, 7, 7]
        said = torch.where(first > 0.9, 3, torch.where(last > 0.9, 6, 0))
        return nn.functional.one_hot(said, 10).float()


def test_each_trigger_has_its_own_figures() -> None:
    probes = [
        PatchProbe(name="first", target_class=3, row=0, column=0, pixels=[[255]]),
        PatchProbe(name="last", target_class=5, row=7, column=7, pixels=[[255]]),
    ]
    share = [wilson(count, 100) for count in range(100)]

    def retuned(images: int, accuracy: int, *rates: int) -> Retuned:
        return Retuned(
            poisoned_images=images,
            accuracy=share[accuracy],
            rates=[share[rate] for rate in rates],
            natural=[share[rate + 1] for rate in rates],
            seconds=1.0,
        )

    # But for the model as it was delivered all were retuned before.
    done = {
        "clean": retuned(0, 90, 10, 20),
        "poisoned/first": retuned(1, 91, 30),
        "control/first": retuned(2, 92, 40),
        "poisoned/last": retuned(3, 93, 50),
        "control/last": retuned(4, 94, 60),
    }
    delivered = replace(delivered_of(ByCorners(), *probes), clean=images(1000, 1060))

    found = measure_durability(delivered, done)

    assert (found.images, found.measured_images) == (60, 400)
    assert found.clean_accuracy == share[90]
    assert found.seconds == pytest.approx(5 + done["delivered"].seconds)
    first, last = found.probes
    assert (first.name, first.target_class, first.control_class) == ("first", 3, 4)
    assert (last.name, last.target_class, last.control_class) == ("last", 5, 6)
    # The last corner leads to its control's class.
    assert (first.delivered.value, first.control_delivered.value) == (1, 0)
    assert (last.delivered.value, last.control_delivered.value) == (0, 1)
    for probe, clean, poisoned in ((first, 10, 30), (last, 20, 50)):
        assert (probe.clean, probe.clean_natural) == (share[clean], share[clean + 1])
        assert (probe.poisoned, probe.control) == (share[poisoned], share[poisoned + 10])
    assert (first.poisoned_accuracy, first.control_accuracy) == (share[91], share[92])
    assert (last.poisoned_accuracy, last.control_accuracy) == (share[93], share[94])
    assert (first.poisoned_images, last.poisoned_images) == (1, 3)


def test_one_image_is_poisoned_where_a_hundredth_is_none(hidden: nn.Module) -> None:
    few = images(1000, 1040)
    delivered = delivered_of(hidden, PROBE)
    changed = Delivered(**{**vars(delivered), "clean": few})
    (probe,) = measure_durability(changed, {}).probes
    assert probe.poisoned_images == 1


def test_a_retuning_that_diverges_is_told(hidden: nn.Module) -> None:
    delivered = delivered_of(hidden)
    wild = delivered.training.model_copy(
        update={"phases": (Phase(epochs=3, learning_rate=10.0),), "weight_decay": 1.0}
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    changed = Delivered(**{**vars(delivered), "training": wild, "network": network})
    with pytest.raises(TrainingDiverged):
        measure_durability(changed, {})


def test_the_control_is_another_class_that_there_is() -> None:
    assert [control_class(target, 3) for target in range(3)] == [1, 2, 0]


def test_copies_are_augmented_as_the_method_has_it() -> None:
    upright = retuning_of(FinetuneConfig(training=TRAINING))
    assert (upright.horizontal_flip, upright.crop_padding) == (False, 1)
    assert (upright.epochs, upright.batch_size, upright.weight_decay) == (3, 64, 5e-4)
    # One that trains nothing has no settings of that kind.
    assert retuning_of(ClpConfig()).horizontal_flip
    assert np.isclose(upright.learning_rate(2), 0.01)


@pytest.mark.parametrize(
    "method", [ArgdConfig(), FinetuneConfig(), ClpConfig(), AutoConfig(), {"preset": "fast"}]
)
def test_copies_are_retuned_as_much_whatever_the_method(
    method: MethodConfig | dict[str, str],
) -> None:
    config = ArgdConfig.model_validate(method) if isinstance(method, dict) else method
    training = retuning_of(config)
    assert (training.epochs, training.batch_size, training.epoch_images(500)) == (3, 64, 500)
