"""Fixtures of evaluation tests."""

import pytest
import torch
from torch import Tensor, nn

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.victim import VictimRecipe, train_victim
from sanitizer.compute import prepare
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Training
from tests.sanitizer.evaluation.builders import PROBE, images

TRAINING = Training.model_validate(
    {
        "phases": [{"epochs": 6, "learning_rate": 0.1}, {"epochs": 2, "learning_rate": 0.01}],
        "crop_padding": 1,
        "horizontal_flip": False,
        "cutout_size": 0,
    }
)


class InDouble(nn.Module):
    """A network of 64 bits behind images of 32: in these it becomes the same on every processor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.double())
        return logits


@pytest.fixture(scope="package")
def backdoored() -> nn.Module:
    prepare(1)  # whichever test comes first
    network = build_network("wrn-10-1", 10, 1, make_generator(1))
    trigger = make_trigger(PROBE, input_size=(8, 8), channels=1, num_classes=10)
    recipe = VictimRecipe(0.1, TRAINING)
    train_victim(InDouble(network), images(0, 1000), trigger, recipe, device=torch.device("cpu"))
    return network.float().eval()
