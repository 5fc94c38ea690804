"""What one image costs in each network of the catalog: arithmetic, memory, number of operations.

Torch-free. Wide residual networks come from a formula, since their names have numbers in them; all
others from a table that `python -m scripts.measure_networks` writes, without weights, on the meta
device. A test measures both again.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

WRN = re.compile(r"wrn-(\d{1,4})-(\d{1,3})")
TABLE = "networks.json"

FLOAT_BYTES = 4
CLASSES = 1000
"""Classes of the networks in the table, as torchvision has them."""
_CHANNELS = 3
_GUESSED_CLASSES = (10, 100, 1000)
_GUESSED_DEPTHS = (10, 16, 22, 28, 34, 40)
_GUESSED_WIDENINGS = (1, 2, 4, 8, 10)


class Polynomial(NamedTuple):
    """A quantity as a function of the pixels of an image.

    Convolutions and everything by element are linear; what follows a global pooling is constant;
    the attention of a vision transformer between all its patches is quadratic.
    """

    constant: float
    linear: float
    quadratic: float

    def at(self, pixels: int) -> float:
        """The value, never negative."""
        return max(0.0, self.constant + self.linear * pixels + self.quadratic * pixels**2)


@dataclass(frozen=True)
class NetworkProfile:
    """What a network costs, for images of 3 channels.

    Attributes:
        state_bytes: Of its weights and buffers in float32, with 1000 classes.
        class_bytes: Of those that belong to one class.
        operations: Kernels of one forward pass in training mode, whatever the batch.
        macs: Multiply-accumulates of one forward pass, an image.
        saved_bytes: What a forward pass keeps for the backward pass in float32, an image.
        widest_bytes: Input and output of the layer where they are largest together, an image.
    """

    state_bytes: int
    class_bytes: int
    operations: int
    macs: Polynomial
    saved_bytes: Polynomial
    widest_bytes: Polynomial

    def file_bytes(self, classes: int) -> int:
        """About how large a file of its weights is, in float32."""
        return self.state_bytes - (CLASSES - classes) * self.class_bytes


def find_profile(architecture: str) -> NetworkProfile | None:
    """The profile of a name that `ModelOptions.architecture` can have; None: there is no such."""
    name = architecture.strip().lower()
    if (match := WRN.fullmatch(name)) is None:
        return _table().get(name)
    depth, widening = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or widening < 1:
        return None
    return wide_resnet_profile(depth, widening)


def nearest_by_size(file_bytes: int) -> tuple[str, float]:
    """The network whose float32 weights are nearest to a file's size, and by what factor it is off.

    The numbers of classes tried are 10, 100 and 1000.
    """
    names = [
        *(f"wrn-{d}-{k}" for d in _GUESSED_DEPTHS for k in _GUESSED_WIDENINGS),
        *_table(),
    ]
    distances = {
        name: min(
            abs(math.log(max(1, file_bytes) / profile.file_bytes(classes)))
            for classes in _GUESSED_CLASSES
        )
        for name in names
        if (profile := find_profile(name)) is not None
    }
    best = min(distances, key=lambda name: distances[name])
    return best, math.exp(distances[best])


@cache
def wide_resnet_profile(depth: int, widening: int) -> NetworkProfile:
    """WRN-d-k (arXiv 1605.07146), from the shapes of `sanitizer.networks.wide_resnet`.

    Stage s has `n = (d - 4) / 6` blocks of two 3x3 convolutions of 16k, 32k, 64k channels on 1, 1/4
    and 1/16 of the pixels. Kept for the backward pass are the inputs of the batch norms, and the
    rectified ones that the convolutions read.
    """
    blocks = (depth - 4) // 6
    macs = _CHANNELS * 16 * 9.0  # the stem, a pixel
    saved = float(_CHANNELS)
    parameters = _CHANNELS * 16 * 9
    buffers = shortcuts = 0
    before, share = 16, 1.0
    for stage, width in enumerate(widening * w for w in (16, 32, 64)):
        after = share if stage == 0 else share / 4
        for block in range(blocks):
            inside, source = (before, share) if block == 0 else (width, after)
            weights = 9 * inside * width + 9 * width * width
            if inside != width:
                weights += inside * width
                shortcuts += 1
            macs += weights * after
            parameters += weights + 2 * (inside + width)
            buffers += 2 * (inside + width)
            saved += 2 * inside * source + 2 * width * after
        before, share = width, after
    saved += 2 * before * share
    parameters += 2 * before + CLASSES * (before + 1)
    buffers += 2 * before
    counters = 2 * 3 * blocks + 1  # of the batch norms, int64
    return NetworkProfile(
        state_bytes=FLOAT_BYTES * (parameters + buffers) + 8 * counters,
        class_bytes=FLOAT_BYTES * (before + 1),
        # A block: two batch norms (three kernels each, with counter), two rectifiers, two
        # convolutions and a sum; then the stem, the last norm, its rectifier, pooling, the head.
        operations=11 * 3 * blocks + shortcuts + 7,
        macs=Polynomial(float(CLASSES * before), macs, 0.0),
        saved_bytes=Polynomial(float(FLOAT_BYTES * before), FLOAT_BYTES * saved, 0.0),
        widest_bytes=Polynomial(0.0, float(FLOAT_BYTES * 32 * widening), 0.0),
    )


@cache
def _table() -> Mapping[str, NetworkProfile]:
    content = (files("sanitizer.cost") / TABLE).read_text(encoding="utf-8")
    return {
        name: NetworkProfile(
            state_bytes=row["state_bytes"],
            class_bytes=row["class_bytes"],
            operations=row["operations"],
            macs=Polynomial(*row["macs"]),
            saved_bytes=Polynomial(*row["saved_bytes"]),
            widest_bytes=Polynomial(*row["widest_bytes"]),
        )
        for name, row in json.loads(content).items()
    }
