"""Draws and splits that keep the shares of the classes. Pure functions of labels and seed."""

import numpy as np
import torch
from numpy.typing import NDArray

from sanitizer.errors import NotEnoughImages
from sanitizer.randomness import make_generator

Indices = NDArray[np.int64]


def draw(labels: NDArray[np.int64], images: int | None, seed: int) -> Indices:
    """Draws images so that the classes keep their shares.

    Shares are rounded by largest remainder; then every class that exists gets at least one image,
    as far as `images` reaches.

    Args:
        labels: Class of each image, [N].
        images: How many to draw; None: all.

    Returns:
        Indices into `labels`, each at most once, ascending.

    Raises:
        NotEnoughImages: There are fewer than `images`.
    """
    if images is None or images == len(labels):
        return np.arange(len(labels), dtype=np.int64)
    if images > len(labels):
        raise NotEnoughImages(
            f"{images:,} images were asked for, the data has {len(labels):,}. Ask for fewer, or "
            "leave the number out to use all.",
            asked=images,
            available=len(labels),
        )
    classes, counts = np.unique(labels, return_counts=True)
    shares = _at_least_one(_apportion(counts, images))
    drawn = [
        _shuffled(labels, int(label), seed, "draw")[:share]
        for label, share in zip(classes, shares, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def hold_out(
    labels: NDArray[np.int64], fraction: float, seed: int, *, every_class: bool = True
) -> tuple[Indices, Indices]:
    """Splits images in two, class by class.

    Each class gives `fraction` of its images, rounded to the nearest, to the second part, but
    neither part loses a class that has two images or more; a class of one image stays in the first.

    Args:
        labels: Class of each image, [N].
        fraction: Share of the second part, in (0, 1).
        every_class: Otherwise the second part has `fraction` of all images, one at least, the
            classes in their shares by largest remainder: of many small classes some give none,
            others by another seed, where each would give one, which may be half of all. It is of
            two classes at least where two can give an image: of one alone it would not tell a model
            that knows nothing else from a good one. Where no class has two images, some give their
            only one; two stay.

    Returns:
        Indices into `labels`: kept, held out; both ascending.

    Raises:
        NotEnoughImages: No class has two images, so that nothing can be held out; otherwise there
            are fewer than three.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    classes, counts = np.unique(labels, return_counts=True)
    if every_class:
        shares = np.maximum(1, (counts * fraction + 0.5).astype(np.int64))
        shares = np.minimum(shares, counts - 1)
    else:
        most = counts - 1 if np.any(counts > 1) else counts
        wanted = max(min(2, int((most > 0).sum())), int(len(labels) * fraction + 0.5))
        shares = _apportion_some(most, counts, max(0, min(wanted, len(labels) - 2)), seed)
    held = [
        _shuffled(labels, int(label), seed, "hold_out")[:share]
        for label, share in zip(classes, shares, strict=True)
    ]
    apart = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    if not len(apart):
        raise NotEnoughImages(
            f"The data has {len(labels)} images, none of its classes two, so none can be held out "
            "to measure on. Give more images, or evaluation data."
            if every_class
            else f"There are {len(labels)} clean images. At least 3 are needed to hold some out to "
            "choose by; give more.",
            available=len(labels),
        )
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), apart), apart


def _shuffled(labels: NDArray[np.int64], label: int, seed: int, purpose: str) -> Indices:
    """The images of a class, in an order that depends on no other class."""
    members = np.flatnonzero(labels == label).astype(np.int64)
    order = torch.randperm(len(members), generator=make_generator(seed, purpose, label))
    shuffled: Indices = members[order.numpy()]
    return shuffled


def _apportion(counts: NDArray[np.int64], seats: int) -> NDArray[np.int64]:
    """`seats` shared in proportion to `counts`, by largest remainder, ties to the first."""
    quotas = counts.astype(object) * seats  # exact: Python's integers
    total = int(counts.sum())
    shares = np.array([int(quota // total) for quota in quotas], dtype=np.int64)
    remainders = np.array([float(quota % total) for quota in quotas])
    first = np.argsort(-remainders, kind="stable")[: seats - int(shares.sum())]
    shares[first] += 1
    return shares


def _apportion_some(
    most: NDArray[np.int64], counts: NDArray[np.int64], seats: int, seed: int
) -> NDArray[np.int64]:
    """Likewise, ties and what is left over by lot, to no class more than its most, and not all to
    one class where another can have one."""
    quotas = counts * (seats / int(counts.sum()))
    shares: NDArray[np.int64] = np.minimum(np.floor(quotas + 1e-9).astype(np.int64), most)
    lot = torch.randperm(len(counts), generator=make_generator(seed, "hold_out", "lot")).numpy()
    order = lot[np.argsort(-(quotas - shares)[lot].round(9), kind="stable")]
    while (left := seats - int(shares.sum())) > 0:
        open_to = order[shares[order] < most[order]][:left]
        if not len(open_to):
            break
        shares[open_to] += 1
    (having,) = np.nonzero(shares)
    others = order[(shares[order] == 0) & (most[order] > 0)]
    if len(having) == 1 and shares[having[0]] > 1 and len(others):
        shares[having[0]] -= 1
        shares[others[0]] += 1
    return shares


def _at_least_one(shares: NDArray[np.int64]) -> NDArray[np.int64]:
    """Moves images from the largest classes to those that got none, while any class has two."""
    for empty in np.flatnonzero(shares == 0):
        richest = int(np.argmax(shares))
        if shares[richest] < 2:
            break
        shares[richest] -= 1
        shares[empty] += 1
    return shares
