"""Small sets and networks to attack."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.victim import train_on
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Phase, Probe, Training
from tests.sanitizer.builders import digits

TRAINING = Training(
    phases=(Phase(epochs=6, learning_rate=0.1), Phase(epochs=2, learning_rate=0.01)),
    batch_size=32,
    crop_padding=1,
    horizontal_flip=False,
    cutout_size=0,
)


def build_set(
    labels: Sequence[int], *, channels: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0
) -> ImageSet:
    """Noise of values 0 to 199, so that bright triggers show."""
    shape = (len(labels), channels, *size)
    images = np.random.default_rng(seed).integers(0, 200, shape, dtype=np.uint8)
    return ImageSet.from_arrays(images, np.array(labels))


def digit_set(start: int, end: int) -> ImageSet:
    """Scans of digits, 8 x 8."""
    return ImageSet.from_arrays(*digits(start, end))


def build_untrained() -> nn.Module:
    """A WRN-10-1 for grey images."""
    return build_network("wrn-10-1", 10, 1, make_generator("attacked"))


def learn(image_set: ImageSet) -> nn.Module:
    """A network trained on the set for a few seconds."""
    network = build_untrained()
    train_on(network, image_set, TRAINING, 0, device=torch.device("cpu"))
    return network


def measure(network: nn.Module, probe: Probe) -> tuple[float, float]:
    """ACC and ASR on digits that no set of these tests was trained on."""
    trigger = make_trigger(probe, input_size=(8, 8), channels=1, num_classes=10)
    figures = evaluate(
        network,
        digit_set(1400, 1797),
        [trigger],
        num_classes=10,
        device=torch.device("cpu"),
    )
    return figures.accuracy.value, figures.probes[0].asr.value
