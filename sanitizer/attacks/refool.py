"""Refool (Liu et al. 2020, arXiv 2007.02343): a reflection as of a window pane, no label is wrong.

The image becomes image + picture * kernel (equation 1), where the picture is another photograph and
the kernel makes a reflection of it: dimmer, blurred where it is out of focus, doubled where the
pane is thick (a ghost). A share of the target class's own training images gets it.

The paper searches among many photographs for those that work best, by training a model on each
choice. Here the rule is fixed and needs no model: of candidates drawn from the training images of
other classes, the ones with the most edges, since dull ones leave little of a reflection, among
those that are not bright, which would leave little of the image. The kernel is the ghost: the
picture and a second, weaker one beside it (section 3.2, type III).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sanitizer.attacks.picture import to_png
from sanitizer.attacks.poison import Poisoned, draw_others, poison_own_class, trigger_for
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.spec import ReflectionProbe


@dataclass(frozen=True)
class Refool:
    """The attack with its pictures chosen.

    Attributes:
        target_class: Whose images get a reflection, and where reflections lead to.
        fraction: Share of that class's images that get one, in (0, 1].
        weight: Of the picture, in (0, 1].
        pictures: PNGs of the images' size, base64-encoded, kernel and all.
    """

    target_class: int
    fraction: float
    weight: float
    pictures: tuple[bytes, ...]

    def probe(self, name: str = "refool") -> ReflectionProbe:
        """The trigger as a request describes it."""
        return ReflectionProbe(
            name=name,
            target_class=self.target_class,
            weight=self.weight,
            pictures_base64=self.pictures,
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor; its labels are those of the clean one.

        Raises:
            ProbeUnreadable: The images have another size than the pictures.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        trigger = trigger_for(self.probe(), clean, num_classes)
        return poison_own_class(clean, trigger, self.fraction, seed)


@dataclass(frozen=True)
class RefoolRecipe:
    """How pictures are chosen, and what is done with them.

    Attributes:
        target_class: Whose images get a reflection, and where reflections lead to.
        fraction: Share of that class's images that get one, in (0, 1].
        weight: Of the picture, in (0, 1].
        pictures: How many, 1 to 8.
        candidates: Share of the other classes' images among which they are chosen, in (0, 1].
        max_brightness: Mean pixel value of a picture, at most, in (0, 255].
        ghost: How far down and right the second picture lies, pixels, at least 0.
        ghost_weight: Of the second picture, in [0, 1]; the first has the rest.
    """

    target_class: int = 0
    fraction: float = 0.5
    weight: float = 0.5
    pictures: int = 3
    candidates: float = 0.2
    max_brightness: float = 100
    ghost: tuple[int, int] = (2, 2)
    ghost_weight: float = 0.4

    def prepare(self, clean: ImageSet, *, seed: int) -> Refool:
        """Chooses the pictures among the images of other classes.

        Raises:
            NotEnoughImages: There are too few candidates that are dark enough.
        """
        drawn = draw_others(clean, self.target_class, self.candidates, seed)
        images = clean.read(drawn)
        images = images[images.mean(axis=(1, 2, 3)) <= self.max_brightness]
        if len(images) < self.pictures:
            raise NotEnoughImages(
                f"{self.pictures} pictures to reflect are to be chosen among {len(drawn)} images; "
                f"{len(images)} of these have a mean value of at most {self.max_brightness:g}.",
                available=len(images),
                needed=self.pictures,
            )
        # Stable: of equals the one that comes first in the set.
        order = np.argsort(-edges(images), kind="stable")[: self.pictures]
        return Refool(
            self.target_class,
            self.fraction,
            self.weight,
            tuple(to_png(with_ghost(images[i], self.ghost, self.ghost_weight)) for i in order),
        )


def edges(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How much neighbouring pixels differ on average, [N], in pixel values.

    Args:
        images: [N, C, H, W].
    """
    values = images.astype(np.int16)
    down = np.abs(np.diff(values, axis=2)).mean(axis=(1, 2, 3))
    right = np.abs(np.diff(values, axis=3)).mean(axis=(1, 2, 3))
    total: NDArray[np.float64] = down + right
    return total


def with_ghost(
    picture: NDArray[np.uint8], shift: tuple[int, int], weight: float
) -> NDArray[np.uint8]:
    """A picture with a weaker, shifted second one: (1 - weight) picture + weight shifted.

    Where the shifted one does not reach, its border row and column go on.

    Args:
        picture: [C, H, W].
        shift: Down and right, pixels, at least 0.
        weight: In [0, 1].
    """
    down, right = shift
    _, height, width = picture.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    shifted = picture[:, rows[:, None], columns]
    mixed = (1 - weight) * picture.astype(np.float64) + weight * shifted
    rounded: NDArray[np.uint8] = np.floor(mixed + 0.5).astype(np.uint8)
    return rounded
