"""Blend (Chen et al. 2017, arXiv 1712.05526): a faint picture over the whole image.

The paper mixes a fixed picture into the image, (1 - alpha) image + alpha picture, with alpha up to
0.2 when it poisons (section 5.2: a cartoon, or uniform noise), and gives it the target's label.
Here it is the noise: it needs no picture, and no class of natural images has it.
"""

from dataclasses import dataclass

from sanitizer.attacks.poison import Poisoned, poison, trigger_for
from sanitizer.data.image_set import ImageSet
from sanitizer.spec import BlendProbe


@dataclass(frozen=True)
class Blend:
    """The recipe.

    Attributes:
        target_class: Where the noise leads to.
        fraction: Share of the images of the other classes that are poisoned, in (0, 1].
        alpha: Weight of the noise, in (0, 1].
        noise_seed: Of the noise.
    """

    target_class: int = 0
    fraction: float = 0.1
    alpha: float = 0.2
    noise_seed: int = 0

    def probe(self, name: str = "blend") -> BlendProbe:
        """The trigger as a request describes it."""
        return BlendProbe(
            name=name,
            target_class=self.target_class,
            alpha=self.alpha,
            noise_seed=self.noise_seed,
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor.

        Raises:
            ProbeUnreadable: The images have neither 1 nor 3 channels.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        trigger = trigger_for(self.probe(), clean, num_classes)
        return poison(clean, trigger, self.fraction, seed)
