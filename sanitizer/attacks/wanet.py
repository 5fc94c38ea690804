"""WaNet (Nguyen and Tran 2021, arXiv 2102.10369): the image is bent a little, nothing is put on it.

The warp is one smooth field for all images. So that a network learns this warp and not that images
are warped at all, more images are bent by the same field with noise on it and keep their labels
(section 3.3, the noise mode).

The paper draws anew in every batch which images are bent; here it is drawn once, which any trainer
can be given. The paper's strength is 0.5, a shift of a quarter of a pixel on average. The default
here is higher: so small a network as a WRN-16-1 tells a quarter of a pixel from noise badly.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sanitizer.attacks.poison import Poisoned, draw_others, trigger_for
from sanitizer.attacks.warp import random_shifts, resample, smooth_field
from sanitizer.data.image_set import ImageSet
from sanitizer.randomness import make_generator
from sanitizer.spec import WarpProbe

_CHUNK = 1000


@dataclass(frozen=True)
class WaNet:
    """The recipe.

    Attributes:
        target_class: Where the warp leads to.
        fraction: Share of the images of the other classes that are bent and get the target's label,
            in (0, 1].
        noise_ratio: Images bent with noise for each of those, as far as there are any left; at
            least 0.
        strength: The paper's s.
        grid: Side of the coarse grid, the paper's k.
        field_seed: Of the field.
    """

    target_class: int = 0
    fraction: float = 0.1
    noise_ratio: float = 2.0
    strength: float = 1.5
    grid: int = 4
    field_seed: int = 0

    def probe(self, name: str = "wanet") -> WarpProbe:
        """The trigger as a request describes it."""
        return WarpProbe(
            name=name,
            target_class=self.target_class,
            strength=self.strength,
            grid=self.grid,
            field_seed=self.field_seed,
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor.

        Raises:
            ProbeUnreadable: The warp changes no pixel of such images.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        if self.noise_ratio < 0:
            raise ValueError(f"noise_ratio must be at least 0, got {self.noise_ratio}")
        trigger = trigger_for(self.probe(), clean, num_classes)
        _, height, width = clean.shape
        field = smooth_field(self.probe(), (height, width))
        indices = draw_others(clean, self.target_class, self.fraction, seed)
        images, labels = clean.read(np.arange(len(clean))), clean.labels.copy()
        images[indices] = trigger.apply(torch.from_numpy(images[indices])).numpy()
        labels[indices] = self.target_class

        generator = make_generator(seed, "noise mode")
        rest = np.setdiff1d(np.arange(len(clean)), indices)
        order = torch.randperm(len(rest), generator=generator).numpy()
        noisy = np.sort(rest[order[: round(self.noise_ratio * len(indices))]])
        for start in range(0, len(noisy), _CHUNK):
            chunk = noisy[start : start + _CHUNK]
            shifts = field + random_shifts(len(chunk), (height, width), generator)
            images[chunk] = resample(torch.from_numpy(images[chunk]), shifts).numpy()
        return Poisoned(ImageSet(images, labels, clean.class_names, clean.names), indices)
