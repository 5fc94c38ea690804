"""Fixtures of evaluation tests."""

import pytest
import torch
from torch import nn

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.victim import VictimRecipe, train_victim
from sanitizer.compute import prepare
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Training
from tests.sanitizer.evaluation.builders import PROBE, images
from tests.sanitizer.precise import Precise

TRAINING = Training.model_validate(
    {
        "phases": [{"epochs": 6, "learning_rate": 0.1}, {"epochs": 2, "learning_rate": 0.01}],
        "crop_padding": 1,
        "horizontal_flip": False,
        "cutout_size": 0,
    }
)


@pytest.fixture(scope="package")
def backdoored() -> nn.Module:
    prepare(1)  # whichever test comes first
    network = build_network("wrn-10-1", 10, 1, make_generator(1))
    trigger = make_trigger(PROBE, input_size=(8, 8), channels=1, num_classes=10)
    recipe = VictimRecipe(0.1, TRAINING)
    train_victim(Precise(network), images(0, 1000), trigger, recipe, device=torch.device("cpu"))
    return network.float().eval()
