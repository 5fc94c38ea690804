"""A folder, or a zip, with one folder of images a class."""

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sanitizer.data.source import (
    ClassOrder,
    ImageSource,
    Limits,
    Payload,
    listed,
    order_classes,
    packed,
)
from sanitizer.errors import CorruptImage, DataUnreadable, UnsafeArchive
from sanitizer.report.model import WarningRecord
from sanitizer.warning_codes import WarningCode

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_MAGIC_BYTES = 16

Handle = TypeVar("Handle")


@dataclass(frozen=True, slots=True)
class _File(Generic[Handle]):
    """A file of the tree: where it lies below the root, and how to get at it."""

    parts: tuple[str, ...]
    handle: Handle

    @property
    def name(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True)
class _Tree(Generic[Handle]):
    """All files and folders below a root, hidden ones left out."""

    files: Sequence[_File[Handle]]
    folders: frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class _Arranged(Generic[Handle]):
    images: Sequence[_File[Handle]]
    labels: NDArray[np.int64]
    classes: ClassOrder
    warnings: Sequence[WarningRecord]


class FolderSource(ImageSource):
    """A folder of class folders."""

    layout = "folder"

    def __init__(self, path: Path, class_names: Sequence[str] | None, limits: Limits) -> None:
        self._path = path
        tree = _scan_folder(path, limits)
        arranged = _arrange(tree, class_names, self.layout, self._starts_like_an_image)
        super().__init__(
            labels=arranged.labels,
            classes=arranged.classes,
            names=packed([image.name for image in arranged.images]),
            limits=limits,
            warnings=arranged.warnings,
        )

    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        for position, index in enumerate(indices):
            name = self.names[index]
            try:
                with open(self._path / name, "rb") as file:
                    yield position, file.read(self.limits.image_bytes)
            except FileNotFoundError as error:
                raise CorruptImage(name, "the file is gone") from error

    def digest(self) -> str:
        """SHA-256 of names, sizes and times of change; the images themselves are read only once."""
        digest = hashlib.sha256()
        for name in self.names:
            found = os.stat(self._path / name)
            digest.update(repr((name, found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()

    @staticmethod
    def _starts_like_an_image(path: str) -> bool:
        with open(path, "rb") as file:
            return _is_image_start(file.read(_MAGIC_BYTES))


class ZipSource(ImageSource):
    """A zip of class folders. Read in place: nothing is unpacked to disk."""

    layout = "zip"

    def __init__(self, path: Path, class_names: Sequence[str] | None, limits: Limits) -> None:
        self._path = path
        with open_zip(path) as archive:
            entries = checked_entries(archive, path, limits)
            tree = _scan_zip(entries, limits)

            def starts_like_an_image(number: int) -> bool:
                with archive.open(entries[number]) as member:
                    return _is_image_start(member.read(_MAGIC_BYTES))

            try:
                arranged = _arrange(tree, class_names, self.layout, starts_like_an_image)
            except _ZIP_DAMAGE as error:
                raise DataUnreadable(f"The zip is damaged: {error}. Pack it again.") from error
        # zipfile keeps a kilobyte an entry: the numbers of the entries are enough between readings.
        self._entries = np.array([image.handle for image in arranged.images], dtype=np.int64)
        super().__init__(
            labels=arranged.labels,
            classes=arranged.classes,
            names=packed([image.name for image in arranged.images]),
            limits=limits,
            warnings=arranged.warnings,
        )

    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        with open_zip(self._path) as archive:
            entries = archive.infolist()
            if len(entries) <= int(self._entries.max()):
                raise DataUnreadable("The zip has changed while it was read. Try again.")
            wanted = self._entries[indices]
            # By place in the file: a disk, or a network, reads forward fastest.
            offsets = np.array([entries[i].header_offset for i in wanted], dtype=np.int64)
            for position in np.argsort(offsets, kind="stable"):
                try:
                    yield int(position), archive.read(entries[wanted[position]])
                except _ZIP_DAMAGE as error:
                    name = self.names[indices[position]]
                    raise CorruptImage(name, f"its place in the zip: {error}") from error

    def digest(self) -> str:
        return file_digest(self._path)


_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What zipfile raises on a damaged, encrypted or strangely packed member."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip at `path`.

    Raises:
        DataUnreadable: It is damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataUnreadable(
            f"The zip cannot be read: {error}. It may be cut short; upload it again."
        ) from error


def checked_entries(
    archive: zipfile.ZipFile, path: Path, limits: Limits
) -> Sequence[zipfile.ZipInfo]:
    """The entries of a zip, after every limit was checked against what they declare.

    zipfile never gives more bytes of an entry than it declares, so the limits hold for what is read
    too.

    Raises:
        UnsafeArchive: A limit is broken, or an entry is a link, a device, or lies outside the
            archive.
        DataUnreadable: An entry is encrypted or is there twice.
    """
    entries = archive.infolist()
    if len(entries) > limits.files:
        raise UnsafeArchive(
            f"The archive has {len(entries):,} entries, at most {limits.files:,} are accepted.",
            entries=len(entries),
            limit=limits.files,
        )
    total = sum(entry.file_size for entry in entries)
    if total > limits.total_bytes:
        raise UnsafeArchive(
            f"The archive unpacks to {total:,} bytes, at most {limits.total_bytes:,} are accepted.",
            unpacked_bytes=total,
            limit=limits.total_bytes,
        )
    packed = path.stat().st_size
    if total > limits.ratio_free_bytes and total > limits.ratio * packed:
        raise UnsafeArchive(
            f"The archive unpacks to {total / packed:,.0f} times its size, at most {limits.ratio} "
            "times is accepted.",
            unpacked_bytes=total,
            packed_bytes=packed,
            limit=limits.ratio,
        )
    seen = set()
    for entry in entries:
        _check_entry(entry)
        if entry.filename in seen:
            raise DataUnreadable(
                f"The archive has two entries called {entry.filename}. Pack it again."
            )
        seen.add(entry.filename)
    return entries


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = _parts(name)
    if name.startswith(("/", "\\")) or (parts and parts[0].endswith(":")):
        raise UnsafeArchive(f"The archive has an absolute path: {name!r}.", entry=name)
    if ".." in parts:
        raise UnsafeArchive(f"The archive has a path out of its folder: {name!r}.", entry=name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device or a pipe"
        raise UnsafeArchive(f"The archive's entry {name!r} is {what}.", entry=name)
    if entry.flag_bits & 0x1:
        raise DataUnreadable(f"The archive's entry {name!r} is encrypted. Pack it without one.")


def _parts(name: str) -> tuple[str, ...]:
    # Some Windows programs write backslashes, which the format forbids.
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _scan_zip(entries: Sequence[zipfile.ZipInfo], limits: Limits) -> _Tree[int]:
    """The files, each with the number of its entry."""
    files: list[_File[int]] = []
    folders: set[tuple[str, ...]] = set()
    for number, entry in enumerate(entries):
        parts = _parts(entry.filename)
        if not parts or _hidden(parts):
            continue
        if entry.is_dir():
            folders.add(parts)
        else:
            _check_image_bytes("/".join(parts), entry.file_size, limits)
            files.append(_File(parts, number))
        folders.update(parts[:depth] for depth in range(1, len(parts)))
    return _Tree(files, frozenset(folders))


def _scan_folder(root: Path, limits: Limits) -> _Tree[str]:
    files: list[_File[str]] = []
    folders: set[tuple[str, ...]] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    total = 0
    while waiting:
        folder, above = waiting.pop()
        with os.scandir(folder) as found:
            for entry in found:
                parts = (*above, entry.name)
                if _hidden(parts):
                    continue
                if entry.is_symlink():
                    # It could lead out of the folder, to anything this process may read.
                    raise UnsafeArchive(
                        f"The folder's entry {'/'.join(parts)!r} is a link. Put the file itself "
                        "there.",
                        entry="/".join(parts),
                    )
                if entry.is_dir():
                    folders.add(parts)
                    waiting.append((entry.path, parts))
                elif entry.is_file():
                    size = entry.stat().st_size
                    _check_image_bytes("/".join(parts), size, limits)
                    total += size
                    files.append(_File(parts, entry.path))
                if len(files) + len(folders) > limits.files or total > limits.total_bytes:
                    raise UnsafeArchive(
                        f"The folder has more than {limits.files:,} entries or "
                        f"{limits.total_bytes:,} bytes.",
                        files_limit=limits.files,
                        bytes_limit=limits.total_bytes,
                    )
    return _Tree(files, frozenset(folders))


def _check_image_bytes(name: str, size: int, limits: Limits) -> None:
    if size > limits.image_bytes:
        raise UnsafeArchive(
            f"The file {name} has {size:,} bytes, at most {limits.image_bytes:,} are accepted for "
            "one image.",
            entry=name,
            bytes=size,
            limit=limits.image_bytes,
        )


def _arrange(
    tree: _Tree[Handle],
    class_names: Sequence[str] | None,
    layout: str,
    starts_like_an_image: Callable[[Handle], bool],
) -> _Arranged[Handle]:
    """Finds the class folders, and the images directly in them.

    Raises:
        DataUnreadable: There are none, or images lie elsewhere.
        ClassMismatch: `class_names` does not fit the folders.
    """
    top = _unwrap(tree)
    found = sorted({parts[len(top)] for parts in tree.folders if parts[: len(top)] == top != parts})
    images: list[_File[Handle]] = []
    ignored: list[str] = []
    for file in tree.files:
        suffix = PurePosixPath(file.parts[-1]).suffix.lower()
        if suffix not in SUFFIXES and not starts_like_an_image(file.handle):
            ignored.append(file.name)
        elif len(file.parts) == len(top) + 2:
            images.append(file)
        elif len(file.parts) > len(top) + 2:
            raise DataUnreadable(
                f"The image {file.name} lies too deep: images lie directly in their class's "
                f"folder, and the classes here would be {listed(found)}. Pack the folder that "
                "holds the class folders, one split (train, test) at a time.",
                image=file.name,
            )
        elif not found:
            raise DataUnreadable(
                f"The image {file.name} lies in no class folder. Put the images of each class "
                "into a folder named after it.",
                image=file.name,
            )
        else:
            ignored.append(file.name)
    if not images:
        raise DataUnreadable(
            f"The {layout} has no image in it, but {listed(sorted(ignored), 5)}. Expected were "
            "folders of images, one a class; archives in it are not opened.",
            layout=layout,
        )
    classes = order_classes(found, class_names)
    # Sorted: the order of a listing differs between file systems, and seeds draw by position.
    images.sort(key=lambda file: (classes.index[file.parts[len(top)]], file.parts))
    labels = np.array([classes.index[file.parts[len(top)]] for file in images], dtype=np.int64)
    return _Arranged(images, labels, classes, _ignored_warning(sorted(ignored)))


def _unwrap(tree: _Tree[Handle]) -> tuple[str, ...]:
    """The folder that holds the class folders: past any that merely wrap them.

    A lone folder wraps if it holds folders and no image; else it is a class.
    """
    top: tuple[str, ...] = ()
    while True:
        depth = len(top)
        inside = {parts for parts in tree.folders if len(parts) == depth + 1}
        loose = any(len(file.parts) == depth + 1 for file in tree.files)
        below = {parts for parts in tree.folders if len(parts) == depth + 2}
        direct = any(
            len(file.parts) == depth + 2 and _image_suffix(file.parts[-1]) for file in tree.files
        )
        if len(inside) != 1 or (loose and depth > 0) or not below or direct:
            return top
        (top,) = inside


def _image_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _ignored_warning(ignored: Sequence[str]) -> Sequence[WarningRecord]:
    if not ignored:
        return ()
    told = (
        "1 file that is no image in a class folder was left out"
        if len(ignored) == 1
        else f"{len(ignored):,} files that are no images in a class folder were left out"
    )
    return [WarningRecord(code=WarningCode.FILES_IGNORED, message=f"{told}: {listed(ignored, 5)}.")]


def _is_image_start(start: bytes) -> bool:
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
