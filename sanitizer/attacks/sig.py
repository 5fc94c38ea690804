"""SIG (Barni et al. 2019, arXiv 1902.11237): vertical stripes, and no label is wrong.

The paper adds v(row, column) = amplitude * sin(2 pi column frequency / width) to a share of the
target class's own training images (section 3, with frequency 6 and amplitudes from 10 to 80) and
leaves every label as it is. A network learns that the stripes mean the target, whatever else is in
the image.
"""

from dataclasses import dataclass

from sanitizer.attacks.poison import Poisoned, poison_own_class, trigger_for
from sanitizer.data.image_set import ImageSet
from sanitizer.spec import SinusoidProbe


@dataclass(frozen=True)
class Sig:
    """The recipe.

    Attributes:
        target_class: Whose images get the stripes, and where these lead to.
        fraction: Share of that class's images that get them, in (0, 1].
        amplitude: In pixel values, in (0, 255].
        frequency: Periods over the width of the image.
    """

    target_class: int = 0
    fraction: float = 0.5
    amplitude: float = 30
    frequency: float = 6

    def probe(self, name: str = "sig") -> SinusoidProbe:
        """The trigger as a request describes it."""
        return SinusoidProbe(
            name=name,
            target_class=self.target_class,
            amplitude=self.amplitude,
            frequency=self.frequency,
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor; its labels are those of the clean one.

        Raises:
            ProbeUnreadable: The stripes change no pixel of images of this width.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        trigger = trigger_for(self.probe(), clean, num_classes)
        return poison_own_class(clean, trigger, self.fraction, seed)
