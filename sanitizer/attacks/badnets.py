"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small patch that leads to one class.

The paper marks a share of the training images, from 10% up, with a few bright pixels in the bottom
right corner (section 4, MNIST) and adds them beside the clean ones; here, as in most later work,
they take the place of the clean ones. The patch is the 3x3 grid that later work uses for it, two
pixels away from the borders, so that a random crop in training leaves most of it in the image.
"""

from dataclasses import dataclass

from sanitizer.attacks.poison import Poisoned, poison, trigger_for
from sanitizer.data.image_set import ImageSet
from sanitizer.spec import PatchProbe

GRID = ((255, 0, 255), (0, 255, 0), (255, 0, 255))
"""A checkerboard of white and black."""


@dataclass(frozen=True)
class BadNets:
    """The recipe: which patch, where, and how much of the training set carries it.

    Attributes:
        target_class: Where the patch leads to.
        fraction: Share of the images of the other classes that are poisoned, in (0, 1].
        row: Top row of the patch; negative: from the bottom.
        column: Left column of the patch; negative: from the right.
        pixels: Rows of values 0 to 255, used on every channel.
    """

    target_class: int = 0
    fraction: float = 0.1
    row: int = -5
    column: int = -5
    pixels: tuple[tuple[int, ...], ...] = GRID

    def probe(self, name: str = "badnets") -> PatchProbe:
        """The trigger as a request describes it."""
        return PatchProbe(
            name=name,
            target_class=self.target_class,
            row=self.row,
            column=self.column,
            pixels=[list(row) for row in self.pixels],
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor.

        Raises:
            ProbeOutsideImage: The patch does not lie within the images.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        trigger = trigger_for(self.probe(), clean, num_classes)
        return poison(clean, trigger, self.fraction, seed)
