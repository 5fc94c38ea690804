"""Batches whose order and augmentation are functions of (seed, epoch, step)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sanitizer.data.augment import augment
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.spec import Training

RESIDENT_BYTES = 2 << 30
"""Sets up to this size live on a CUDA device as one uint8 tensor; others are read by batch."""
RESIDENT_SHARE = 4
"""And up to a fourth of what is free there: networks, batches and feature maps need room."""
_PIECE_BYTES = 16 << 20

Batch = tuple[Tensor, Tensor]
"""Images, float32 [B, C, H, W] in [0, 1], and labels, int64 [B].

Of a batch that a group shares, this process's images alone and everybody's labels.
"""


class Batches:
    """Shuffled and augmented batches of a set, epoch by epoch.

    The order of an epoch is a function of `(*seed_parts, "order", epoch)`, the augmentation of a
    batch of `(*seed_parts, "augment", epoch, step)`: a run taken up at any step sees what it would
    have seen.
    """

    def __init__(
        self,
        image_set: ImageSet,
        training: Training | None,
        batch_size: int,
        device: torch.device,
        seed_parts: tuple[int | str, ...],
        *,
        resident_bytes: int | None = None,
        group: Group = ALONE,
    ) -> None:
        """Without `training` nothing is augmented.

        Args:
            resident_bytes: A set up to this size is copied to the device at once. None: what suits
                the device; on a CPU nothing, where the images' map is memory already.

        Raises:
            NotEnoughImages: The set has fewer than two images, and batch norm cannot train on one.
        """
        if len(image_set) < 2:
            raise NotEnoughImages(
                f"{len(image_set)} images came to train on; at least 2 are needed.",
                available=len(image_set),
                needed=2,
            )
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {batch_size}")
        if resident_bytes is None:
            resident_bytes = _resident_bytes(device)
        self._pixels = _Pixels(image_set, device, resident_bytes)
        self._training = training
        self._images = len(image_set) if training is None else training.epoch_images(len(image_set))
        self._batch_size = batch_size
        self._seed_parts = seed_parts
        self._group = group

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch. The last, smaller one counts, unless it would be one image alone."""
        whole, rest = divmod(self._images, self._batch_size)
        return whole + (rest > 1)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0), from `start_step` on."""
        generator = make_generator(*self._seed_parts, "order", epoch)
        rounds = -(-self._images // len(self._pixels))
        orders = [torch.randperm(len(self._pixels), generator=generator) for _ in range(rounds)]
        order = torch.cat(orders)[: self._images]
        for step in range(start_step, self.steps_per_epoch):
            places = order[step * self._batch_size : (step + 1) * self._batch_size]
            rows = self._group.share(len(places))
            images = self._pixels.read(places[rows])
            if self._training is not None and len(images):
                drawn = make_generator(*self._seed_parts, "augment", epoch, step)
                images = augment(images, self._training, drawn, share=rows, of=len(places))
            yield _to_float(images), self._pixels.labels(places)


class _Pixels:
    """The images and labels of a set, on the device if that was asked for and they are few enough.

    On a CPU the memory map is not only as good but faster, once its pages are in memory: a batch of
    64 drawn from 100,000 images of 32 x 32 takes numpy 53 microseconds from the map, torch 137 from
    a tensor (2 threads, torch 2.15).
    """

    def __init__(self, image_set: ImageSet, device: torch.device, resident_bytes: int) -> None:
        self._set = image_set
        self._device = device
        # A copy: the set's own labels may be shared, and torch would write through.
        self._labels = torch.from_numpy(np.array(image_set.labels, dtype=np.int64)).to(device)
        self._resident: Tensor | None = None
        if image_set.image_bytes <= resident_bytes:
            self._resident = _copied(image_set, device)

    def __len__(self) -> int:
        return len(self._set)

    def read(self, places: Tensor) -> Tensor:
        """Images, uint8, at `places`, which is on the CPU."""
        if self._resident is None:
            return torch.from_numpy(self._set.read(places.numpy())).to(self._device)
        return self._resident[places.to(self._device, non_blocking=True)]

    def labels(self, places: Tensor) -> Tensor:
        """Labels at `places`."""
        return self._labels[places.to(self._device, non_blocking=True)]


def _resident_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return min(RESIDENT_BYTES, free // RESIDENT_SHARE)


def _copied(image_set: ImageSet, device: torch.device) -> Tensor:
    """All images on the device, [N, C, H, W], piece by piece: the host never holds them all."""
    images = torch.empty((len(image_set), *image_set.shape), dtype=torch.uint8, device=device)
    piece = max(1, _PIECE_BYTES // max(1, image_set.image_bytes // len(image_set)))
    for start in range(0, len(image_set), piece):
        places = np.arange(start, min(start + piece, len(image_set)), dtype=np.int64)
        images[start : start + piece] = torch.from_numpy(image_set.read(places))
    return images


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255)
