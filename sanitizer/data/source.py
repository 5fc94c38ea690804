"""What every layout of image data offers, its limits, and how classes get their numbers.

Data comes from strangers. Nothing here unpacks a file to disk, follows a link or unpickles.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from sanitizer.errors import ClassMismatch, DataUnreadable, EmptyClass
from sanitizer.report.model import WarningRecord

Payload = bytes | NDArray[np.uint8]
"""An encoded image file, or pixels [H, W] or [H, W, C]."""


@dataclass(frozen=True)
class Limits:
    """What data may cost; anything beyond is refused before it is read."""

    files: int = 2_000_000
    """Entries of an archive or folder, rows of a table."""
    total_bytes: int = 64 << 30
    """Size after unpacking."""
    ratio: int = 200
    """Size after unpacking to size of the file. Images and pixels are far below 50."""
    ratio_free_bytes: int = 64 << 20
    """Below this size after unpacking the ratio is not looked at: a few flat images pack well."""
    image_bytes: int = 256 << 20
    """One encoded image."""
    image_pixels: int = 1 << 26
    """Height times width of one image; 8192 x 8192."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class ClassOrder:
    """Which number each class of the data has.

    Attributes:
        names: By class number.
        index: Class number by the name the data uses.
        complete: Whether `names` claims to be all classes of the model. Numbered classes do not:
            the data may lack one, and its numbers would still be right.
    """

    names: tuple[str, ...]
    index: Mapping[str, int]
    complete: bool


class MadeNames(Sequence[str]):
    """Names that are made when somebody asks for one.

    Only an error does; as strings they would be the largest thing that is kept of an image.

    Args:
        length: How many there are.
        make: Gives the name at a position, 0 to `length` - 1.
    """

    def __init__(self, length: int, make: Callable[[int], str]) -> None:
        self._places = range(length)
        self._make = make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> "list[str]": ...

    def __getitem__(self, position: int | slice) -> "str | list[str]":
        found = self._places[position]
        return self._make(found) if isinstance(found, int) else [self._make(i) for i in found]


def packed(names: Sequence[str]) -> MadeNames:
    """The names in one piece of memory.

    Strings of their own, which stay, lie among what is only needed to open the data, and keep much
    of its memory from going back to the system.
    """
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    together = b"".join(encoded)

    def make(position: int) -> str:
        start = int(ends[position - 1]) if position else 0
        return together[start : int(ends[position])].decode("utf-8", "surrogateescape")

    return MadeNames(len(names), make)


class ImageSource(ABC):
    """Images with their classes, known without decoding one.

    Attributes:
        labels: Class of each image, int64 [N].
        class_names: By class number.
        names_are_complete: Whether `class_names` claims to be all classes of the model.
        names: What a person calls each image: its path, or its row.
        warnings: What a person should know about the data.
    """

    layout: ClassVar[str]

    def __init__(
        self,
        *,
        labels: NDArray[np.int64],
        classes: ClassOrder,
        names: Sequence[str],
        limits: Limits,
        warnings: Sequence[WarningRecord] = (),
    ) -> None:
        self.labels = labels
        self.class_names = classes.names
        self.names_are_complete = classes.complete
        self.names = names
        self.limits = limits
        self.warnings = tuple(warnings)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        """The images at `indices` with their positions there, in the order that reads fastest.

        Holds a bounded number of images in memory.

        Raises:
            CorruptImage: An image cannot be read.
            DataUnreadable: The file changed or is damaged.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 that changes whenever the data does, hex."""


def order_classes(found: Sequence[str], given: Sequence[str] | None) -> ClassOrder:
    """Numbers the classes of data that names them.

    Args:
        found: The names in the data, each once.
        given: The order the request asks for.

    Raises:
        ClassMismatch: `given` is not a permutation of `found`, or two names are the same number.
    """
    if given is not None:
        if sorted(given) != sorted(found):
            raise ClassMismatch(
                f"The data has the classes {listed(sorted(found))}; class_names has "
                f"{listed(given)}. Only in the data: {listed(sorted(set(found) - set(given)))}. "
                f"Only in class_names: {listed(sorted(set(given) - set(found)))}. Each class of "
                "the data must be named exactly once.",
                data_classes=sorted(found),
                class_names=list(given),
            )
        return ClassOrder(tuple(given), {name: i for i, name in enumerate(given)}, True)
    if found and all(name.isascii() and name.isdigit() for name in found):
        index = {name: int(name) for name in found}
        if len(set(index.values())) < len(index):
            raise ClassMismatch(
                f"Two classes of the data are the same number: {listed(sorted(found))}.",
                data_classes=sorted(found),
            )
        return ClassOrder(_numbered(max(index.values()) + 1), index, False)
    names = tuple(sorted(found))
    return ClassOrder(names, {name: i for i, name in enumerate(names)}, True)


def order_numbered(
    labels: NDArray[np.int64], own_names: Sequence[str] | None, given: Sequence[str] | None
) -> tuple[ClassOrder, NDArray[np.int64]]:
    """Classes of data that numbers them, and its labels in the order asked for.

    Args:
        labels: As the data has them.
        own_names: Names by number, where the data has them.
        given: The order the request asks for; where the data has no names, what to call its
            numbers.

    Raises:
        ClassMismatch: A number is negative or has no name, or the names differ.
    """
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0:
        raise ClassMismatch(
            f"The data has the class {lowest}; classes are numbered from 0. Remove the images "
            "that have no class.",
            data_classes=[lowest, highest],
        )
    names = own_names if own_names is not None else given
    if names is None:
        return ClassOrder(_numbered(highest + 1), {}, False), labels
    if highest >= len(names):
        raise ClassMismatch(
            f"The data has classes up to {highest}, but only {len(names)} names: {listed(names)}.",
            data_classes=[lowest, highest],
            class_names=list(names),
        )
    if own_names is None or given is None:
        return ClassOrder(tuple(names), {}, True), labels
    order = order_classes(own_names, given)
    renumbered = np.array([order.index[name] for name in own_names], dtype=np.int64)
    return order, renumbered[labels]


def check_classes(source: ImageSource, num_classes: int, *, what: str = "data") -> None:
    """Makes sure that the classes of the data can be those of the model.

    Args:
        num_classes: Outputs of the model.
        what: What to call the data: "clean data".

    Raises:
        ClassMismatch: They are not; lists both sides.
    """
    names = source.class_names
    highest = int(source.labels.max(initial=0))
    if source.names_are_complete and len(names) != num_classes:
        raise ClassMismatch(
            f"The {what} has {len(names)} classes ({listed(names)}), the model has {num_classes}. "
            "Give the data the classes the model was trained on.",
            data_classes=list(names),
            model_classes=num_classes,
        )
    if highest >= num_classes or len(names) > num_classes:
        present = [str(label) for label in np.unique(source.labels)]
        from_1 = present[0] == "1" and highest == num_classes
        hint = "They seem to count from 1: subtract 1 from each. " if from_1 else ""
        raise ClassMismatch(
            f"The {what} has the classes {listed(present)}, the model has {num_classes}, numbered "
            f"0 to {num_classes - 1}. {hint}Where the numbers are names, not positions, give "
            "class_names in the order of the model's outputs.",
            data_classes=present,
            model_classes=num_classes,
        )


def check_every_class(
    labels: NDArray[np.int64],
    num_classes: int,
    class_names: Sequence[str] = (),
    *,
    what: str = "clean data",
) -> None:
    """Makes sure that every class of the model has an image.

    Raises:
        EmptyClass: One has none; names it.
    """
    counts = np.bincount(labels, minlength=num_classes)
    empty = [int(i) for i in np.flatnonzero(counts == 0)]
    if empty:
        names = [class_names[i] if i < len(class_names) else str(i) for i in empty]
        which = ", ".join(
            str(i) if name == str(i) else f"{i} ({name})"
            for i, name in zip(empty[:10], names[:10], strict=True)
        )
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        raise EmptyClass(
            f"The {what} has no image of class {which}{more}; every one of the model's "
            f"{num_classes} classes needs one. Add images of it, or draw more images.",
            empty_classes=empty,
            names=names,
            num_classes=num_classes,
        )


def check_same_order(clean: ImageSource, evaluation: ImageSource) -> None:
    """Makes sure that two sources that name the same classes also number them alike.

    Raises:
        ClassMismatch: Same names, another order: one of the two would be labelled wrong.
    """
    named = clean.names_are_complete and evaluation.names_are_complete
    ours, theirs = clean.class_names, evaluation.class_names
    if named and ours != theirs and sorted(ours) == sorted(theirs):
        raise ClassMismatch(
            f"The clean data numbers its classes {listed(ours)}, the evaluation data "
            f"{listed(theirs)}. Give both the same class_names, in the order of the model's "
            "outputs.",
            data_classes=list(ours),
            evaluation_classes=list(theirs),
        )


def check_any(count: int, layout: str) -> None:
    """Refuses data without an image.

    Raises:
        DataUnreadable: `count` is 0.
    """
    if count == 0:
        raise DataUnreadable(f"The {layout} has no image in it.", layout=layout)


def listed(items: Sequence[object], limit: int = 12) -> str:
    """The items for a message, the first few of many."""
    shown = ", ".join(str(item) for item in items[:limit])
    if not items:
        return "none"
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def _numbered(count: int) -> tuple[str, ...]:
    # A folder called 999999999 must not make a billion names; no model has so many classes.
    if count > 1_000_000:
        raise ClassMismatch(
            f"The data has a class {count - 1}; class numbers are positions among the model's "
            "outputs. Give class_names if these numbers are names.",
            data_classes=[count - 1],
        )
    return tuple(str(i) for i in range(count))
