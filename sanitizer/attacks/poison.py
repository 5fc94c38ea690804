"""Poisons a training set: a share of its images gets the trigger and the target's label."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sanitizer.attacks.trigger import Trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.randomness import make_generator


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A training set with a backdoor in it.

    Attributes:
        image_set: In memory, in the order of the clean one.
        indices: Which images carry the trigger and the target's label, ascending, int64.
    """

    image_set: ImageSet
    indices: NDArray[np.int64]


def poison(clean: ImageSet, trigger: Trigger, fraction: float, seed: int) -> Poisoned:
    """Puts the trigger and the target's label on images of the other classes, all to one.

    Poisoned images take the place of the clean ones; `clean` is left as it is.

    Args:
        fraction: Share of the images whose class is not the target, in (0, 1]; rounded to the
            nearest count.

    Raises:
        NotEnoughImages: That count is 0.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    others = np.flatnonzero(clean.labels != trigger.target_class)
    count = int(len(others) * fraction + 0.5)
    if count == 0:
        raise NotEnoughImages(
            f"A share of {fraction:g} of {len(others)} images outside class "
            f"{trigger.target_class} is none. Poison a larger share, or give more images.",
            available=len(others),
            fraction=fraction,
        )
    order = torch.randperm(len(others), generator=make_generator(seed, "poison")).numpy()
    indices = np.sort(others[order[:count]]).astype(np.int64)
    images, labels = clean.read(np.arange(len(clean))), clean.labels.copy()
    images[indices] = trigger.apply(torch.from_numpy(images[indices])).numpy()
    labels[indices] = trigger.target_class
    return Poisoned(ImageSet(images, labels, clean.class_names, clean.names), indices)
