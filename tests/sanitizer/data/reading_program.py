"""Takes in images the way a run does, up to one epoch of batches: those of each file it is told of.

Answers each line on standard input, the path of a file, with the number of images that it has seen.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sanitizer.data.image_set import decode
from sanitizer.data.loader import Batches
from sanitizer.data.readers import open_source
from sanitizer.data.splits import draw
from sanitizer.spec import DataSource, Training


def take_in(path: Path) -> int:
    source = open_source(DataSource(path=path))
    indices = draw(source.labels, None, 0)
    whole = decode(
        source,
        indices,
        input_size=(32, 32),
        channels=3,
        folder=path.with_suffix(".decoded"),
        threads=1,
    )
    image_set = whole.subset(np.arange(len(whole))[::-1].copy())
    image_set.digests()
    batches = Batches(image_set, Training(), 64, torch.device("cpu"), (0,))
    return sum(len(images) for images, _ in batches.epoch(0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(f"{take_in(Path(line.strip()))}\n")
        sys.stdout.flush()
