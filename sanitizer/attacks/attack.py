"""What every attack is: a trigger that a request can describe, and a way to poison with it."""

from typing import Protocol, runtime_checkable

from torch import nn

from sanitizer.attacks.poison import Poisoned
from sanitizer.data.image_set import ImageSet
from sanitizer.spec import Probe


class Attack(Protocol):
    """A recipe whose numbers are all known."""

    @property
    def target_class(self) -> int:
        """Where the trigger leads to."""
        ...

    def probe(self) -> Probe:
        """The trigger as a request describes it; attacks let it be named."""
        ...

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor; `clean` is left as it is.

        Args:
            num_classes: Of the model that will be trained on it.
            seed: Of the draw of images, and of all else that is drawn.

        Raises:
            ProbeOutsideImage: The trigger does not lie within the images.
            ProbeUnreadable: The trigger does not suit the images.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        ...


@runtime_checkable
class DataRecipe(Protocol):
    """An attack some of whose numbers come out of the images that it will poison."""

    def prepare(self, clean: ImageSet, *, seed: int) -> Attack:
        """The attack with all numbers known.

        Raises:
            NotEnoughImages: There are too few images.
        """
        ...


@runtime_checkable
class ModelRecipe(Protocol):
    """An attack some of whose numbers come out of a clean model."""

    def prepare_against(self, network: nn.Module, clean: ImageSet, *, seed: int) -> Attack:
        """The attack with all numbers known.

        Args:
            network: Trained on clean images, takes float images in [0, 1]. Its weights stay as
                they are; it is in eval mode afterwards.
            clean: The images that will be poisoned.
            seed: Of what is drawn.
        """
        ...
