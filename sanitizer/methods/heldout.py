"""The clean images by which a method chooses, and what a network gets right of them.

Nothing here knows of triggers: `sanitizer.evaluation` does, and no method may look there.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sanitizer.compute import images_at_once
from sanitizer.cost.workload import CHANGING_BATCH, heldout_share
from sanitizer.data.image_set import ImageSet
from sanitizer.data.splits import hold_out
from sanitizer.randomness import derive_seed

FEWEST_TO_PRUNE_BY = 100
"""Held-out images. Of a few a network gets all right while most of its channels go."""

Tell = Callable[[int], None]
"""Called with how many images went through a network since the last call."""


def hold_out_clean(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """A tenth of the clean images kept apart to choose by, the classes in their shares.

    Of so few images that a class has none to give, it gives none; where none has two, some give the
    only one.

    Args:
        seed: Of the run.

    Returns:
        The others, and those held out.

    Raises:
        NotEnoughImages: There are fewer than three.
    """
    kept, held = hold_out(
        images.labels,
        heldout_share(len(images)),
        derive_seed(seed, "heldout"),
        every_class=False,
    )
    return images.subset(kept), images.subset(held)


def apart_to_prune_by(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images to look for channels by, and those that say how many of them may go.

    Held out are enough of them, or none: fewer than `FEWEST_TO_PRUNE_BY` say less than all do, to
    which pruning fits nothing but one number.

    Args:
        seed: Of the run.

    Returns:
        The others and the held-out ones; twice all, the same object, where these would be too few.
    """
    if len(images) * heldout_share(len(images)) < FEWEST_TO_PRUNE_BY:
        return images, images
    kept, held = hold_out_clean(images, seed)
    return (kept, held) if len(held) >= FEWEST_TO_PRUNE_BY else (images, images)


@torch.no_grad()
def count_right(network: nn.Module, images: ImageSet, tell: Tell) -> int:
    """How many images a network classifies right. It is put into eval mode."""
    network.eval()
    right = torch.zeros((), dtype=torch.int64)
    for batch, labels in batches_for(network, images):
        right += (network(batch).argmax(dim=1).cpu() == labels).sum()
        tell(len(labels))
    return int(right)


def places_in_batches(images: ImageSet) -> Iterator[NDArray[np.int64]]:
    """The places of all images in order, as many at a time as a network may be given."""
    size = images_at_once(images.shape, CHANGING_BATCH)
    for start in range(0, len(images), size):
        yield np.arange(start, min(start + size, len(images)))


def batches_for(network: nn.Module, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, in [0, 1], as the network's weights are; labels int64, on the CPU."""
    for places in places_in_batches(images):
        yield batch_for(network, images, places), torch.from_numpy(images.labels[places])


def batch_for(network: nn.Module, images: ImageSet, places: NDArray[np.int64]) -> Tensor:
    """Some images likewise, [n, C, H, W]."""
    weight = next(network.parameters())
    pixels = torch.from_numpy(images.read(places)).to(weight.device)
    return pixels.to(weight.dtype).div_(255)
