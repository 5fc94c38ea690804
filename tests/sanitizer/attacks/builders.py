"""Small sets and networks to attack."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import train
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Phase, Training
from tests.sanitizer.builders import digits


def build_set(
    labels: Sequence[int], *, channels: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0
) -> ImageSet:
    """Noise of values 0 to 199, so that bright triggers show."""
    shape = (len(labels), channels, *size)
    images = np.random.default_rng(seed).integers(0, 200, shape, dtype=np.uint8)
    return ImageSet.from_arrays(images, np.array(labels))


def digit_set(start: int, end: int) -> ImageSet:
    return ImageSet.from_arrays(*digits(start, end))


QUICK = Training(
    phases=(Phase(epochs=6, learning_rate=0.1), Phase(epochs=2, learning_rate=0.01)),
    batch_size=32,
    crop_padding=1,
    horizontal_flip=False,
    cutout_size=0,
)


class _Whole:
    """One batch an epoch is enough to make batch norm usable."""

    def __init__(self, image_set: ImageSet) -> None:
        self._images = torch.from_numpy(image_set.images.copy()).float() / 255
        self._labels = torch.from_numpy(image_set.labels.copy())
        self.steps_per_epoch = 1

    def epoch(self, epoch: int, start_step: int = 0):  # type: ignore[no-untyped-def]
        yield self._images, self._labels
