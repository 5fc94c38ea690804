"""Poisons a training set: a share of its images gets the trigger.

Either images of the other classes, which get the target's label too, or images of the target class
itself, whose labels stay right (a clean-label attack).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.randomness import make_generator
from sanitizer.spec import Probe


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A training set with a backdoor in it.

    Attributes:
        image_set: In memory, in the order of the clean one. Its labels are those to train on.
        indices: Which images carry the trigger and lead to the target, ascending, int64.
    """

    image_set: ImageSet
    indices: NDArray[np.int64]


def trigger_for(probe: Probe, clean: ImageSet, num_classes: int) -> Trigger:
    """The trigger that a probe describes, on images of a set.

    Args:
        num_classes: Of the model that will be trained on them.

    Raises:
        ProbeOutsideImage: It does not lie within the images.
        ProbeUnreadable: It does not suit the images.
        TargetClassOutOfRange: There is no such class.
    """
    channels, height, width = clean.shape
    return make_trigger(
        probe, input_size=(height, width), channels=channels, num_classes=num_classes
    )


def poison(clean: ImageSet, trigger: Trigger, fraction: float, seed: int) -> Poisoned:
    """Puts the trigger and the target's label on images of the other classes, all to one.

    Poisoned images take the place of the clean ones; `clean` is left as it is.

    Args:
        fraction: Share of the images whose class is not the target, in (0, 1]; rounded to the
            nearest count.

    Raises:
        NotEnoughImages: That count is 0.
    """
    indices = draw_others(clean, trigger.target_class, fraction, seed)
    images, labels = clean.read(np.arange(len(clean))), clean.labels.copy()
    images[indices] = trigger.apply(torch.from_numpy(images[indices])).numpy()
    labels[indices] = trigger.target_class
    return Poisoned(ImageSet(images, labels, clean.class_names, clean.names), indices)


def poison_own_class(clean: ImageSet, trigger: Trigger, fraction: float, seed: int) -> Poisoned:
    """Puts the trigger on images of the target class; no label changes.

    Args:
        fraction: Share of the images of the target class, in (0, 1]; rounded to the nearest count.

    Raises:
        NotEnoughImages: That count is 0.
    """
    indices = draw_own(clean, trigger.target_class, fraction, seed)
    images = clean.read(np.arange(len(clean)))
    images[indices] = trigger.apply(torch.from_numpy(images[indices])).numpy()
    return Poisoned(ImageSet(images, clean.labels.copy(), clean.class_names, clean.names), indices)


def draw_others(clean: ImageSet, target: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Places of a share of the images whose class is not the target, ascending.

    Raises:
        NotEnoughImages: It is none.
    """
    others = np.flatnonzero(clean.labels != target)
    return _draw(others, fraction, seed, f"outside class {target}")


def draw_own(clean: ImageSet, target: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Places of a share of the images of the target class, ascending.

    Raises:
        NotEnoughImages: It is none.
    """
    return _draw(np.flatnonzero(clean.labels == target), fraction, seed, f"of class {target}")


def _draw(
    candidates: NDArray[np.int64], fraction: float, seed: int, which: str
) -> NDArray[np.int64]:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    count = int(len(candidates) * fraction + 0.5)
    if count == 0:
        raise NotEnoughImages(
            f"A share of {fraction:g} of {len(candidates)} images {which} is none. Poison a larger "
            "share, or give more images.",
            available=len(candidates),
            fraction=fraction,
        )
    order = torch.randperm(len(candidates), generator=make_generator(seed, "poison")).numpy()
    return np.sort(candidates[order[:count]]).astype(np.int64)
