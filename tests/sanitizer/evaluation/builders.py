"""A small backdoored network, and what it is searched with."""

import torch
from torch import nn

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.inversion import Subject
from sanitizer.networks.taps import find_taps
from sanitizer.spec import PatchProbe
from tests.sanitizer.builders import digits

TARGET = 3
PROBE = PatchProbe(target_class=TARGET, row=0, column=0, pixels=[[255, 0], [0, 255]])


def images(start: int, end: int) -> ImageSet:
    pixels, labels = digits(start, end)
    return ImageSet(
        pixels, labels, [str(n) for n in range(10)], [str(n) for n in range(end - start)]
    )


def subject_of(network: nn.Module) -> Subject:
    (*_, point) = find_taps(network, "wrn-10-1", (8, 8), 1)
    return Subject(
        network=network.eval(),
        point=point,
        num_classes=10,
        searched=images(1000, 1300),
        measured=images(1300, 1600),
        device=torch.device("cpu"),
        seed=0,
    )
