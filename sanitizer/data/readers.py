"""Opens clean data, whatever layout it came in. The content decides, never the file's name."""

from pathlib import Path

from sanitizer.data.arrays import NpzSource
from sanitizer.data.class_folders import FolderSource, ZipSource, open_zip
from sanitizer.data.parquet import ParquetSource
from sanitizer.data.signatures import DESCRIBED_BYTES, PARQUET, ZIP, describe
from sanitizer.data.source import DEFAULT_LIMITS, ImageSource, Limits
from sanitizer.errors import DataUnreadable
from sanitizer.spec import DataSource

_ACCEPTED = (
    "a folder or zip of class folders, an npz of images and labels, or a parquet file with "
    "embedded images"
)


def open_source(source: DataSource, limits: Limits = DEFAULT_LIMITS) -> ImageSource:
    """The images that `source` names: all of them, before any draw.

    Raises:
        DataUnreadable: Nothing is there, the layout is not known, or the file is damaged.
        UnsafeArchive: A limit is broken, or an entry reaches out.
        ClassMismatch: The classes are not those of `source.class_names`.
    """
    path = source.path
    if path.is_dir():
        return FolderSource(path, source.class_names, limits)
    if not path.is_file():
        raise DataUnreadable(f"There is no file or folder {path}; {_ACCEPTED} was expected.")
    with path.open("rb") as file:
        start = file.read(DESCRIBED_BYTES)
    if start.startswith(PARQUET):
        return ParquetSource(path, source.class_names, limits)
    if start.startswith(ZIP):
        if _holds_arrays(path):
            return NpzSource(path, source.class_names, limits)
        return ZipSource(path, source.class_names, limits)
    raise DataUnreadable(
        f"The file {path.name} is none of the known layouts: {describe(start)}. Accepted: "
        f"{_ACCEPTED}.",
        first_bytes=start[:8].hex(),
    )


def _holds_arrays(path: Path) -> bool:
    """Whether every member is an array: numpy names them `<key>.npy`, at the top."""
    with open_zip(path) as archive:
        names = [entry.filename for entry in archive.infolist()]
    return bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)
