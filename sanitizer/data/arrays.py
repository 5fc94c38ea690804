"""An npz with one array of images and one of labels.

Read as the zip it is, block by block: numpy's own loader would hold all images in memory. Pickled
arrays (dtype object) are refused by their header, before a byte of them is looked at.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sanitizer.data.class_folders import checked_entries, file_digest, open_zip
from sanitizer.data.source import (
    ImageSource,
    Limits,
    MadeNames,
    Payload,
    check_any,
    listed,
    order_numbered,
)
from sanitizer.errors import DataUnreadable, UnsafeArchive

IMAGE_KEYS = ("images", "image", "x", "data")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
OTHER_IMAGE_KEYS = (
    "x_train",
    "x_test",
    "train_images",
    "test_images",
    "val_images",
    "arr_0",
    "arr_2",
)
"""Looked for where there is none of the above: as Keras and MedMNIST have them, and `numpy.savez`
where it was given no names. A file with two parts has two of them, and is refused."""
OTHER_LABEL_KEYS = (
    "y_train",
    "y_test",
    "train_labels",
    "test_labels",
    "val_labels",
    "arr_1",
    "arr_3",
)

_BLOCK_BYTES = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile and numpy raise on a damaged member."""


@dataclass(frozen=True)
class _Array:
    """An array in the npz, by its header."""

    key: str
    entry: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool


class NpzSource(ImageSource):
    """Arrays: images uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], and integer labels [N]."""

    layout = "npz"

    def __init__(self, path: Path, class_names: Sequence[str] | None, limits: Limits) -> None:
        self._path = path
        with open_zip(path) as archive:
            arrays = _read_headers(archive, checked_entries(archive, path, limits))
            images = _pick(arrays, IMAGE_KEYS, OTHER_IMAGE_KEYS, "images")
            labels = _pick(arrays, LABEL_KEYS, OTHER_LABEL_KEYS, "labels")
            _check_layout(images, labels, limits)
            try:
                with archive.open(labels.entry) as member:
                    raw = npy.read_array(member, allow_pickle=False)
            except _DAMAGE as error:
                raise _damaged(labels.key, error) from error
        self._entry = images.entry
        self._shape = images.shape
        self._channels_first = len(images.shape) == 4 and images.shape[3] not in (1, 3)
        count = images.shape[0]
        check_any(count, self.layout)
        key = images.key
        classes, ordered = order_numbered(_to_int64(raw.reshape(-1)), None, class_names)
        super().__init__(
            labels=ordered,
            classes=classes,
            names=MadeNames(count, lambda i: f"{key}[{i}]"),
            limits=limits,
        )

    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        shape = self._shape[1:]
        image_bytes = math.prod(shape)
        block = max(1, _BLOCK_BYTES // image_bytes)
        order = np.argsort(indices, kind="stable")
        wanted = indices[order]
        try:
            with open_zip(self._path) as archive, archive.open(self._entry) as member:
                _read_header(member)
                at = 0
                for start in range(0, int(wanted[-1]) + 1 if len(wanted) else 0, block):
                    count = min(block, self._shape[0] - start)
                    raw = _read_exactly(member, count * image_bytes)
                    pixels = np.frombuffer(raw, dtype=np.uint8).reshape(count, *shape)
                    while at < len(wanted) and wanted[at] < start + count:
                        image = pixels[wanted[at] - start]
                        turned = image.transpose(1, 2, 0) if self._channels_first else image
                        # A copy: a view would keep the whole block alive while it waits.
                        yield int(order[at]), np.array(turned, order="C")
                        at += 1
        except _DAMAGE as error:
            raise _damaged("the images", error) from error

    def digest(self) -> str:
        return file_digest(self._path)


def _read_headers(
    archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]
) -> dict[str, _Array]:
    arrays = {}
    for entry in entries:
        key = entry.filename.removesuffix(".npy")
        try:
            with archive.open(entry) as member:
                shape, fortran, dtype = _read_header(member)
        except _DAMAGE as error:
            raise _damaged(key, error) from error
        arrays[key] = _Array(key, entry, shape, dtype, fortran)
    return arrays


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(member)
    if version == (1, 0):
        return npy.read_array_header_1_0(member)
    if version == (2, 0):
        return npy.read_array_header_2_0(member)
    # 3.0 is for records whose fields have names beyond Latin-1.
    raise ValueError(f"npy version {version[0]}.{version[1]}, 1.0 and 2.0 are accepted")


def _read_exactly(member: IO[bytes], size: int) -> bytes:
    raw = member.read(size)
    if len(raw) < size:
        raise EOFError("it ends early")
    return raw


def _pick(
    arrays: dict[str, _Array], keys: Sequence[str], others: Sequence[str], what: str
) -> _Array:
    matching = [array for key, array in arrays.items() if key.lower() in keys] or [
        array for key, array in arrays.items() if key.lower() in others
    ]
    if len(matching) != 1:
        problem = "no array" if not matching else "more than one array"
        raise DataUnreadable(
            f"The npz has {problem} of {what}: it has {listed(sorted(arrays))}. Call exactly one "
            f"of them {listed(keys)}.",
            arrays=sorted(arrays),
            accepted=list(keys),
        )
    array = matching[0]
    if array.dtype.hasobject:
        raise DataUnreadable(
            f"The array {array.key} holds Python objects, which only unpickling could read, and "
            "that runs code. Save plain arrays of numbers.",
            array=array.key,
        )
    if array.fortran and len(array.shape) > 1:
        raise DataUnreadable(
            f"The array {array.key} is stored column by column. Save "
            f"numpy.ascontiguousarray({array.key}).",
            array=array.key,
        )
    return array


def _check_layout(images: _Array, labels: _Array, limits: Limits) -> None:
    """Raises DataUnreadable unless shapes and types are as the class says."""
    shape = images.shape
    if images.dtype != np.uint8:
        raise DataUnreadable(
            f"The array {images.key} is {images.dtype}; images are uint8, 0 to 255.",
            array=images.key,
            dtype=str(images.dtype),
        )
    last, first = (shape[3] in (1, 3), shape[1] in (1, 3)) if len(shape) == 4 else (True, False)
    # A header may say anything that Python takes for a whole number, True included.
    counts = all(type(extent) is int and extent >= 0 for extent in shape)
    if len(shape) not in (3, 4) or not (last or first) or not counts or 0 in shape[1:]:
        raise DataUnreadable(
            f"The array {images.key} has the shape {list(shape)}; [N, H, W], [N, H, W, C] or "
            "[N, C, H, W] with 1 or 3 channels was expected.",
            array=images.key,
            shape=list(shape),
        )
    if last and first:
        raise DataUnreadable(
            f"The array {images.key} has the shape {list(shape)}; which axis is the channels "
            "cannot be told. Save [N, H, W] or [N, H, W, C] with larger images.",
            array=images.key,
            shape=list(shape),
        )
    pixels = math.prod(shape[1:])
    if pixels > limits.image_pixels * 3:
        raise UnsafeArchive(
            f"The images of {images.key} have {pixels:,} values each, at most "
            f"{limits.image_pixels * 3:,} are accepted.",
            limit=limits.image_pixels * 3,
        )
    if shape[0] > limits.files:
        raise UnsafeArchive(
            f"The array {images.key} has {shape[0]:,} images, at most {limits.files:,} are "
            "accepted.",
            images=shape[0],
            limit=limits.files,
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataUnreadable(
            f"The array {labels.key} is {labels.dtype}; labels are integers.",
            array=labels.key,
            dtype=str(labels.dtype),
        )
    if labels.shape not in ((shape[0],), (shape[0], 1)):
        raise DataUnreadable(
            f"The array {labels.key} has the shape {list(labels.shape)}, {images.key} "
            f"{list(shape)}; one label an image was expected: [{shape[0]}].",
            array=labels.key,
            shape=list(labels.shape),
        )


def _to_int64(labels: NDArray[np.generic]) -> NDArray[np.int64]:
    # Unsigned 64-bit values beyond int64 become negative, and those are refused.
    return labels.astype(np.int64)


def _damaged(key: str, error: Exception) -> DataUnreadable:
    return DataUnreadable(f"The npz is damaged at {key}: {error}. Save or upload it again.")
