"""Patches, and images for networks that look at few pixels."""

from collections.abc import Sequence

import numpy as np
import torch

from sanitizer.data.image_set import ImageSet
from sanitizer.methods.random_triggers import Numbers


def corner_patches(*colours: float) -> Numbers:
    """Patches of three pixels in the upper left corner, each of one colour."""
    one = torch.ones(len(colours), 1, 1, 1)
    colour = torch.tensor(colours).view(-1, 1, 1, 1)
    # Side, top, left, noise, colour, and that it is no noise.
    return one, 0 * one, 0 * one, torch.zeros(len(colours), 1, 3, 3), colour, one


def images_called(
    labels: list[int], said: list[int], class_names: Sequence[str] | None = None
) -> ImageSet:
    """Black images, whose last pixel says what the network calls them."""
    pixels = np.zeros((len(labels), 1, 8, 8), dtype=np.uint8)
    pixels[:, 0, -1, -1] = said
    return ImageSet.from_arrays(pixels, np.array(labels), class_names)
