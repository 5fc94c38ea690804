"""Images decoded once to one uint8 array on disk, memory-mapped."""

import errno
import hashlib
import io
import json
import math
import os
import resource
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sanitizer.data.pixels import check_channels, to_pixels
from sanitizer.data.source import ImageSource, MadeNames, Payload
from sanitizer.errors import ImagesTooLarge, OutOfDisk

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

DIGEST_BYTES = 16
HEADER_BYTES = 4096
"""Of an array file, at most."""
_DIGEST_CHUNK_BYTES = 4 << 20
_LAYOUT_VERSION = 1
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 16 << 20
"""Encoded: a few chunks are in memory at a time, whatever the size of an image."""
_CHUNK_DECODED_BYTES = 4 << 20
_SMALL_IMAGE_BYTES = 4 << 10
"""Encoded. With smaller ones most of the time is Python's own, and more threads would only hand
its lock to and fro: 10,000 images of 32 x 32 took one thread 1.1 s and two 1.4 s."""


class ImageSet:
    """Images of one size, with their classes.

    A subset shares the array of the whole and copies nothing.

    Attributes:
        labels: int64 [N].
        class_names: By class number.
        names: What a person calls each image.
        resized: How many images of the whole had another size.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        class_names: Sequence[str],
        names: Sequence[str],
        *,
        resized: int = 0,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """`rows` says which of `images` these are; None: all."""
        count = len(images) if rows is None else len(rows)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(f"images are uint8 [N, C, H, W], got {images.dtype} {images.shape}")
        if not count == len(labels) == len(names):
            raise ValueError(f"{count} images, {len(labels)} labels and {len(names)} names came")
        self._whole = images
        self._rows = rows
        self.labels = labels
        self.class_names = tuple(class_names)
        self.names = names
        self.resized = resized

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        class_names: Sequence[str] | None = None,
    ) -> Self:
        """A set of images that are in memory. Without names, classes and images go by number."""
        numbers = [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
        names = MadeNames(len(labels), lambda i: f"image {i}")
        given = numbers if class_names is None else class_names
        return cls(images, labels.astype(np.int64), given, names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self._whole.shape
        return channels, height, width

    @property
    def image_bytes(self) -> int:
        """Size of all images, decoded."""
        return len(self) * int(np.prod(self.shape))

    @property
    def images(self) -> NDArray[np.uint8]:
        """uint8 [N, C, H, W]: the memory map itself; of a subset, a copy, so `read` is cheaper."""
        return self._whole if self._rows is None else self._whole[self._rows]

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A writable copy of the images at `indices`, [n, C, H, W]."""
        rows = indices if self._rows is None else self._rows[indices]
        return np.asarray(self._whole)[rows]

    def subset(self, indices: NDArray[np.int64]) -> "ImageSet":
        """The images at `indices`, in that order."""
        return ImageSet(
            self._whole,
            self.labels[indices],
            self.class_names,
            _picked(self.names, indices),
            resized=self.resized,
            rows=indices if self._rows is None else self._rows[indices],
        )

    def digests(self, on_progress: Progress | None = None) -> NDArray[np.uint8]:
        """BLAKE2b of the pixels of each image, uint8 [N, 16], in constant memory beside that."""
        found = np.empty((len(self), DIGEST_BYTES), np.uint8)
        chunk = max(1, _DIGEST_CHUNK_BYTES // max(1, int(np.prod(self.shape))))
        for start in range(0, len(self), chunk):
            places = np.arange(start, min(start + chunk, len(self)))
            images = self.read(places).reshape(len(places), -1)
            of_each = (hashlib.blake2b(i.data, digest_size=DIGEST_BYTES).digest() for i in images)
            found[places] = np.frombuffer(b"".join(of_each), np.uint8).reshape(-1, DIGEST_BYTES)
            if on_progress is not None:
                on_progress(int(places[-1]) + 1, len(self))
        return found

    def class_counts(self, num_classes: int) -> list[int]:
        """Images of each class."""
        return [int(n) for n in np.bincount(self.labels, minlength=num_classes)]


def decode(
    source: ImageSource,
    indices: NDArray[np.int64],
    *,
    input_size: tuple[int, int],
    channels: int,
    folder: Path,
    on_progress: Progress | None = None,
    threads: int | None = None,
) -> ImageSet:
    """Decodes images once, into `folder`; what was finished there before is taken up again.

    Memory stays constant: a bounded number of images is under way at a time. The array is written
    under another name and renamed when whole, then a marker names it finished; so an interrupted
    run begins again and a finished one is reused. The name depends on the content of the source,
    the indices, the size and the channels.

    Args:
        indices: Which images, [N]; the result has their order.
        input_size: Height and width; images of another size are resized, and counted.
        channels: 1 or 3; images of the other kind are converted.
        folder: Belongs to this run alone; made if it is not there.
        threads: That decode, at most; None: one a processor, at most 8.

    Raises:
        CorruptImage: An image cannot be decoded.
        DataUnreadable: The source is damaged, or the model takes neither 1 nor 3 channels.
        ImagesTooLarge: They are more than this process may write into a file.
        OutOfDisk: `folder` is full.
    """
    check_channels(channels)
    indices = np.ascontiguousarray(indices, dtype=np.int64)
    shape = (len(indices), channels, *input_size)
    key = _key(source, indices, shape)
    array_path, marker_path = folder / f"images-{key}.npy", folder / f"images-{key}.json"
    resized = _finished(array_path, marker_path, shape)
    if resized is None:
        _check_file_limit(shape)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            resized = _decode_to(
                array_path, source, indices, shape, on_progress, threads or _default_threads()
            )
            _write_whole(marker_path, json.dumps({"shape": shape, "resized": resized}).encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OutOfDisk(
                f"The disk filled up while decoding {len(indices):,} images, which take "
                f"{int(np.prod(shape)):,} bytes, to {folder}. Free some space.",
                needed_bytes=int(np.prod(shape)),
            ) from error
    elif on_progress is not None:
        on_progress(len(indices), len(indices))
    images = (
        np.load(array_path, mmap_mode="r", allow_pickle=False)
        if len(indices)
        else np.empty(shape, np.uint8)
    )
    return ImageSet(
        images,
        source.labels[indices],
        source.class_names,
        _picked(source.names, indices),
        resized=resized,
    )


def _picked(names: Sequence[str], indices: NDArray[np.int64]) -> MadeNames:
    return MadeNames(len(indices), lambda i: names[int(indices[i])])


def _key(source: ImageSource, indices: NDArray[np.int64], shape: tuple[int, ...]) -> str:
    digest = hashlib.sha256(repr((_LAYOUT_VERSION, source.digest(), shape)).encode())
    digest.update(indices.tobytes())
    return digest.hexdigest()[:32]


def _check_file_limit(shape: tuple[int, ...]) -> None:
    """Tells before hours of decoding what the kernel would tell after them."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    needed = HEADER_BYTES + math.prod(shape)
    if most == resource.RLIM_INFINITY or needed <= most:
        return
    count, channels, height, width = shape
    fit = (most - HEADER_BYTES) // math.prod(shape[1:])
    raise ImagesTooLarge(
        f"{count:,} images of {channels} x {height} x {width} values take {needed:,} bytes, and "
        f"a run may write {most:,} into a file. Ask for {max(0, fit):,} or fewer (`images`): a few "
        "thousand are plenty.",
        needed_bytes=needed,
        limit=most,
    )


def _finished(array_path: Path, marker_path: Path, shape: tuple[int, ...]) -> int | None:
    """How many images were resized, if the array is there and whole."""
    try:
        marker = json.loads(marker_path.read_bytes())
        size = array_path.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    whole = marker.get("shape") == list(shape) and size == len(_header(shape)) + np.prod(shape)
    return int(marker["resized"]) if whole else None


def _decode_to(
    array_path: Path,
    source: ImageSource,
    indices: NDArray[np.int64],
    shape: tuple[int, ...],
    on_progress: Progress | None,
    threads: int,
) -> int:
    header = _header(shape)
    image_bytes = int(np.prod(shape[1:]))
    # One fixed name: what a killed run left under it is written over, not left to fill the disk.
    part_path = array_path.with_suffix(".npy.part")
    # Written with pwrite, not through a memory map: a full disk is then an error, not a SIGBUS.
    descriptor = os.open(part_path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        _pwrite_all(descriptor, header, 0)

        def decode_chunk(chunk: Sequence[tuple[int, Payload]]) -> int:
            resized = 0
            decoded = np.empty((len(chunk), *shape[1:]), np.uint8)
            for place, (position, payload) in enumerate(chunk):
                decoded[place], was_resized = to_pixels(
                    payload,
                    source.names[indices[position]],
                    input_size=(shape[2], shape[3]),
                    channels=shape[1],
                    max_pixels=source.limits.image_pixels,
                )
                resized += was_resized
            # At once what lies side by side: a system call an image would cost a third of the time.
            for run in _runs([position for position, _ in chunk]):
                offset = len(header) + chunk[run.start][0] * image_bytes
                _pwrite_all(descriptor, decoded[run].data.cast("B"), offset)
            return resized

        chunk_images = max(1, min(_CHUNK_IMAGES, _CHUNK_DECODED_BYTES // max(1, image_bytes)))
        chunks = _chunks(source.read(indices), chunk_images)
        resized = _in_threads(decode_chunk, chunks, len(indices), on_progress, threads)
        os.fsync(descriptor)
    except BaseException:
        part_path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    part_path.replace(array_path)
    return resized


def _in_threads(
    decode_chunk: Callable[[Sequence[tuple[int, Payload]]], int],
    chunks: Iterator[list[tuple[int, Payload]]],
    images: int,
    on_progress: Progress | None,
    threads: int,
) -> int:
    """Runs the chunks, a few at a time; the first error, in the order of the source, ends all."""
    resized = done = 0
    waiting: deque[tuple[int, Future[int]]] = deque()

    def finish_one() -> None:
        nonlocal resized, done
        size, future = waiting.popleft()
        resized += future.result()
        done += size
        if on_progress is not None:
            on_progress(done, images)

    first = next(chunks, [])
    if _bytes(first) < _SMALL_IMAGE_BYTES * len(first):
        threads = 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for chunk in chain([first] if first else [], chunks):
            waiting.append((len(chunk), pool.submit(decode_chunk, chunk)))
            if len(waiting) > 2 * threads:
                finish_one()
        while waiting:
            finish_one()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return resized


def _runs(positions: Sequence[int]) -> Iterator[slice]:
    """The parts of a list in which each number is by one higher than the one before."""
    start = 0
    for end in range(1, len(positions) + 1):
        if end == len(positions) or positions[end] != positions[end - 1] + 1:
            yield slice(start, end)
            start = end


def _chunks(
    items: Iterator[tuple[int, Payload]], images: int
) -> Iterator[list[tuple[int, Payload]]]:
    chunk: list[tuple[int, Payload]] = []
    size = 0
    for position, payload in items:
        chunk.append((position, payload))
        size += _bytes([(position, payload)])
        if len(chunk) == images or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _bytes(items: Sequence[tuple[int, Payload]]) -> int:
    return sum(p.nbytes if isinstance(p, np.ndarray) else len(p) for _, p in items)


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": tuple(int(n) for n in shape)}
    )
    return header.getvalue()


def _pwrite_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _write_whole(path: Path, data: bytes) -> None:
    part_path = path.with_suffix(".json.part")
    part_path.write_bytes(data)
    part_path.replace(path)


def _default_threads() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
