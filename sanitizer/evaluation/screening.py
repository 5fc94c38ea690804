"""Finds images among the clean ones that carry a trigger.

A clean set that a few triggered images got into teaches the backdoor again. In the features of the
suspect model, images that a trigger leads to their label lie apart from those that look like it
(spectral signatures, Tran et al., NeurIPS 2018, arXiv 1811.00636; activation clustering, Chen et
al., 2018, arXiv 1811.03728). So the images of each class are split where they fall apart most. That
alone says little: any class can be halved. What counts is what tells the parts apart in the
picture: where the difference of their mean pictures, added to images of other classes, leads these
to the class, one part carries a trigger.

Triggers without a fixed place or picture, such as warps, leave no trace in a mean picture and are
not found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sanitizer.compute import images_at_once
from sanitizer.data.image_set import ImageSet
from sanitizer.networks.taps import TapPoint, tapped
from sanitizer.randomness import make_generator

CARRIED_RATE = 0.5
"""Of images of other classes that the difference of two parts leads to the class, over those that
as strong a difference of any two halves does: from here on one of them carries a trigger. Parts of
clean development classes came to 0.21, triggered ones to 0.74 and more
(docs/results/screening.md)."""

TELLING = 0.1
"""Difference of two such rates, below which they do not tell which part carries it: the smaller."""

MOST_PARTS = 3
"""That are taken from a class."""

SEPARATION = 3.5
"""Standard deviations between the means of two parts; with less they are not looked at further."""

FEWEST_IMAGES = 10
"""Of a class, that the model gets right: fewer are not split."""

FEWEST_PART = 4
"""Images of a part: the mean of fewer still shows what is on them."""

TRIED_IMAGES = 100
"""That differences are added to, of all classes together."""

LED_IMAGES = 1000
"""On which the sanitized model is tried, once."""

MOST_DIRECTIONS = 16
"""Principal components that a class is split in."""

IMAGES_A_DIRECTION = 10
"""That there must be for each of them."""

STARTS, ROUNDS = 4, 10
SHRINKAGE = 0.1
"""Of the covariance within the parts towards a multiple of the identity."""

BATCH = 250


@dataclass(frozen=True)
class Split:
    """A class in two parts, by a direction in its features.

    Attributes:
        centre: What is subtracted from features first, [C].
        direction: [C].
        threshold: Features that come out above are of the one part.
        separation: Distance of the parts' means along it, in standard deviations within them.
    """

    centre: Tensor
    direction: Tensor
    threshold: float
    separation: float

    def above(self, features: Tensor) -> Tensor:
        """Which of [N, C] are of the one part; bool, [N]."""
        return (features.double() - self.centre) @ self.direction > self.threshold


@dataclass(frozen=True)
class Carrier:
    """A part of a class whose images carry a trigger.

    Attributes:
        target: The class.
        places: Of the part, in the set that was screened.
        looked_at: Images of the class that were split.
        rate: Share of images of other classes that go to this one once the difference between the
            parts of the class is added.
        tried: Images that this was tried on.
        trace: That difference, [C, H, W], in pixel values.
        split: That found it.
        is_above: Which side of the split it is on.
    """

    target: int
    places: NDArray[np.int64]
    looked_at: int
    rate: float
    tried: int
    trace: NDArray[np.float32]
    split: Split
    is_above: bool


class Screen:
    """Looks at images with the eyes of one model.

    Args:
        network: In eval mode; takes float images in [0, 1].
        point: Whose features are looked at, averaged over the map.
        device: Where the network is.
        on_images: Told how many images went through the network since the last call.
    """

    def __init__(
        self,
        network: nn.Module,
        point: TapPoint,
        device: torch.device,
        on_images: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._network = network
        self._point = point
        self._device = device
        self._on_images = on_images

    def carriers(self, images: ImageSet, seed: int) -> list[Carrier]:
        """The parts of classes whose images carry a trigger.

        Args:
            images: Supposed to be clean.
            seed: Of the run: differences are tried on a draw of the images.

        Returns:
            By class; of one class several where the first was not all.
        """
        order = torch.randperm(len(images), generator=make_generator(seed, "screening"))
        tried = np.sort(order[:TRIED_IMAGES].numpy())
        others = _Others(images.read(tried), images.labels[tried])
        others.answers = self._looked_at(images, tried)[1].numpy()
        total = sum_of(images, np.arange(len(images)))
        found: list[Carrier] = []
        for target in np.unique(images.labels):
            found += self._of_class(images, int(target), total, others)
        return found

    def carried_by(self, images: ImageSet, carriers: list[Carrier]) -> NDArray[np.int64]:
        """Places of other images that lie where carriers do, in order."""
        found: set[int] = set()
        for carrier in carriers:
            right, features = self._right(images, carrier.target)
            same = carrier.split.above(features).numpy() == carrier.is_above
            found |= set(right[same].tolist())
        return np.array(sorted(found), dtype=np.int64)

    def led_by(
        self, images: ImageSet, traces: Sequence[NDArray[np.float64]], target: int, seed: int
    ) -> tuple[list[int], int]:
        """How many images of other classes each trace leads to a class, and of how many.

        Args:
            images: Clean ones; a draw of `LED_IMAGES` of them is tried.
            traces: What is added, each [C, H, W], in pixel values.
            target: Images that the model takes for it anyway are not counted.
            seed: Of the draw.
        """
        order = torch.randperm(len(images), generator=make_generator(seed, "traces"))
        tried = np.sort(order[:LED_IMAGES].numpy())
        others = _Others(images.read(tried), images.labels[tried])
        others.answers = self._looked_at(images, tried)[1].numpy()
        pixels = others.not_of(target)
        return [self._count_led(pixels, trace, target) for trace in traces], len(pixels)

    def _of_class(
        self, images: ImageSet, target: int, total: NDArray[np.float64], others: "_Others"
    ) -> list[Carrier]:
        pixels = others.not_of(target)
        if not len(pixels):
            return []
        right, features = self._right(images, target)
        of_class = np.flatnonzero(images.labels == target)
        elsewhere = (total - sum_of(images, of_class)) / max(1, len(images) - len(of_class))
        found: list[Carrier] = []
        # What was found may have hidden another part, or more of the same.
        while len(found) < MOST_PARTS and len(right) >= FEWEST_IMAGES:
            carrier = self._carrier(images, target, right, features, pixels, elsewhere)
            if carrier is None:
                break
            found.append(carrier)
            left = ~np.isin(right, carrier.places)
            right, features = right[left], features[torch.from_numpy(left)]
        return found

    def _carrier(
        self,
        images: ImageSet,
        target: int,
        right: NDArray[np.int64],
        features: Tensor,
        pixels: NDArray[np.uint8],
        elsewhere: NDArray[np.float64],
    ) -> Carrier | None:
        """A part of some images of a class that carries a trigger.

        Args:
            right: Their places.
            features: Of these.
            pixels: Images that differences are added to.
            elsewhere: Mean picture of the other classes.
        """
        for split in splits_of(features):
            above = split.above(features).numpy()
            parts = right[above], right[~above]
            if split.separation < SEPARATION or min(map(len, parts)) < FEWEST_PART:
                continue
            means = [sum_of(images, part) / len(part) for part in parts]
            difference = means[0] - means[1]
            rate = max(self._led(pixels, sign * difference, target) for sign in (1, -1))
            if rate < CARRIED_RATE:
                continue
            # As strong a difference of any two halves must not: some models bear no change at all.
            halved = difference_of_halves(images, right, difference)
            if rate - self._led(pixels, halved, target) < CARRIED_RATE:
                continue
            # A stripe, say, misleads when it is taken away as well as when it is added: which part
            # has it shows beside other classes.
            rates = [self._led(pixels, mean - elsewhere, target) for mean in means]
            is_above = rates[0] > rates[1]
            if abs(rates[0] - rates[1]) < TELLING:
                is_above = len(parts[0]) < len(parts[1])
            return Carrier(
                target,
                places=parts[0 if is_above else 1],
                looked_at=len(right),
                rate=rate,
                tried=len(pixels),
                trace=(difference if is_above else -difference).astype(np.float32),
                split=split,
                is_above=is_above,
            )
        return None

    def _right(self, images: ImageSet, target: int) -> tuple[NDArray[np.int64], Tensor]:
        """Images of a class that the model takes for it: places, and features [N, C]."""
        places = np.flatnonzero(images.labels == target)
        features, answers = self._looked_at(images, places)
        is_right = answers == target
        return places[is_right.numpy()], features[is_right]

    @torch.no_grad()
    def _looked_at(self, images: ImageSet, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features [N, C] and answers [N], on the CPU."""
        features, answers = [torch.empty(0, self._point.channels)], [torch.empty(0).long()]
        with tapped(self._network, [self._point]) as taps:
            at_once = images_at_once(images.shape, BATCH)
            for start in range(0, len(places), at_once):
                pixels = images.read(places[start : start + at_once])
                answers.append(self._answers(torch.from_numpy(pixels).float()))
                (maps,) = taps.take()
                features.append(maps.float().mean(dim=(2, 3)).cpu())
        return torch.cat(features), torch.cat(answers)

    def _led(self, pixels: NDArray[np.uint8], change: NDArray[np.float64], target: int) -> float:
        return self._count_led(pixels, change, target) / len(pixels)

    @torch.no_grad()
    def _count_led(
        self, pixels: NDArray[np.uint8], change: NDArray[np.float64], target: int
    ) -> int:
        added = torch.from_numpy(change.astype(np.float32))
        led = 0
        at_once = images_at_once(pixels.shape[1:], BATCH)
        for start in range(0, len(pixels), at_once):
            moved = torch.from_numpy(pixels[start : start + at_once]).float().add_(added)
            led += int((self._answers(moved.clamp_(0, 255)) == target).sum())
        return led

    def _answers(self, pixels: Tensor) -> Tensor:
        """Of float images in [0, 255]."""
        inputs = (pixels / 255).to(self._device).contiguous(memory_format=torch.channels_last)
        answers: Tensor = self._network(inputs).argmax(dim=1).cpu()
        self._on_images(len(pixels))
        return answers


class _Others:
    """Images that differences are added to."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pixels = pixels
        self.labels = labels
        self.answers = labels

    def not_of(self, target: int) -> NDArray[np.uint8]:
        """Those that neither are of a class nor taken for it."""
        chosen: NDArray[np.bool_] = (self.labels != target) & (self.answers != target)
        return np.ascontiguousarray(self.pixels[chosen])


def difference_of_halves(
    images: ImageSet, places: NDArray[np.int64], like: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of every other image's mean picture and the rest's, as strong as another difference.

    Of fewer than two images: none, [C, H, W] of zeros.
    """
    if len(places) < 2:
        return np.zeros_like(like)
    halves = [sum_of(images, half) / len(half) for half in (places[::2], places[1::2])]
    difference = halves[0] - halves[1]
    mine, wanted = (float(np.sqrt(np.square(each).mean())) for each in (difference, like))
    scaled: NDArray[np.float64] = difference * (wanted / max(mine, 1e-12))
    return scaled


def splits_of(features: Tensor) -> list[Split]:
    """Splits points in two where they fall apart most.

    From each of the first principal components on, the points are cut in two such that most of the
    variance lies between the parts (Otsu 1979), and the direction is replaced by Fisher's linear
    discriminant of the parts, until they stay as they are.

    Args:
        features: [N, C].

    Returns:
        Different ones, the best first; none where the points cannot be told apart.
    """
    points = features.double()
    centre = points.mean(dim=0)
    points = points - centre
    basis = _principal(points, min(MOST_DIRECTIONS, max(1, len(points) // IMAGES_A_DIRECTION)))
    projected = points @ basis
    found: dict[bytes, Split] = {}
    for start in range(min(STARTS, basis.shape[1])):
        direction = torch.zeros(basis.shape[1], dtype=torch.float64)
        direction[start] = 1
        threshold = _cut(projected @ direction)
        for _ in range(ROUNDS):
            above = projected @ direction > threshold
            sharper = _discriminant(projected, above)
            if sharper is None:
                break
            direction, threshold = sharper, _cut(projected @ sharper)
            if torch.equal(projected @ direction > threshold, above):
                break
        above = projected @ direction > threshold
        separation = _separation(projected @ direction, threshold)
        if separation:
            parts = above if above[0] else ~above
            split = Split(centre, basis @ direction, threshold, separation)
            found.setdefault(parts.numpy().tobytes(), split)
    return sorted(found.values(), key=lambda split: -split.separation)


def _principal(points: Tensor, count: int) -> Tensor:
    """The first principal directions of centred points, [C, count] or fewer."""
    rows, columns = points.shape
    if rows < columns:
        values, vectors = torch.linalg.eigh(points @ points.T)
        vectors = points.T @ vectors
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=1e-12)
    else:
        values, vectors = torch.linalg.eigh(points.T @ points)
    significant = int((values > 1e-9 * values[-1].clamp(min=1e-12)).sum())
    directions: Tensor = vectors.flip(1)[:, : max(1, min(count, significant))]
    return directions


def _cut(values: Tensor) -> float:
    """Between the two parts of [N] values with the most variance between them."""
    ordered = values.sort().values
    count = len(ordered)
    sizes = torch.arange(1, count, dtype=torch.float64)
    sums = ordered.cumsum(0)
    low = sums[:-1] / sizes
    high = (sums[-1] - sums[:-1]) / (count - sizes)
    place = int((sizes * (count - sizes) * (high - low) ** 2).argmax())
    return float((ordered[place] + ordered[place + 1]) / 2)


def _discriminant(points: Tensor, above: Tensor) -> Tensor | None:
    """Fisher's direction between two parts, [K]; None where a part has fewer than two points."""
    parts = points[above], points[~above]
    if min(map(len, parts)) < 2:
        return None
    spread = torch.zeros(points.shape[1], points.shape[1], dtype=points.dtype)
    for part in parts:
        off = part - part.mean(dim=0)
        spread += off.T @ off / len(points)
    spread += SHRINKAGE * spread.diagonal().mean().clamp(min=1e-12) * torch.eye(len(spread))
    direction: Tensor = torch.linalg.solve(spread, parts[0].mean(dim=0) - parts[1].mean(dim=0))
    return direction


def _separation(values: Tensor, threshold: float) -> float:
    above = values > threshold
    parts = values[above], values[~above]
    if not min(map(len, parts)):
        return 0.0
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / len(values)
    distance = parts[0].mean() - parts[1].mean()
    return float(distance / torch.as_tensor(within).sqrt().clamp(min=1e-12))


def sum_of(images: ImageSet, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of pixel values, [C, H, W]."""
    total = np.zeros(images.shape)
    for start in range(0, len(places), BATCH):
        total += images.read(places[start : start + BATCH]).sum(axis=0, dtype=np.float64)
    return total
