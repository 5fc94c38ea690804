"""The format of a data set by its first bytes, whatever its name says."""

from pathlib import Path

from sanitizer.data.signatures import PARQUET, ZIP, describe
from service.db.tables import DatasetFormat
from service.errors import FieldError, UnknownDataFormat

_NPY_SUFFIX = b".npy"


def sniff(head: bytes, filename: str, *, pointer: str = "/file") -> DatasetFormat:
    """The format of a file that begins with `head` (`HEAD_BYTES` of them where it has as many).

    An npz is a zip whose first member is an `.npy`. `pointer` names the place of the request that
    is at fault if there is none.

    Raises:
        UnknownDataFormat: It is none that can be read.
    """
    if head.startswith(PARQUET):
        return DatasetFormat.PARQUET
    if head.startswith(ZIP):
        length = int.from_bytes(head[26:28], "little")
        first_member = head[30 : 30 + length]
        return DatasetFormat.NPZ if first_member.endswith(_NPY_SUFFIX) else DatasetFormat.ZIP
    raise UnknownDataFormat(
        f"{filename} is neither a zip, an npz nor a parquet file: {describe(head)}.",
        errors=[FieldError(pointer, "has no known format")],
    )


def sniff_path(path: Path) -> DatasetFormat:
    """The format of a file or folder.

    Raises:
        UnknownDataFormat: It is none that can be read.
    """
    if path.is_dir():
        return DatasetFormat.FOLDER
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UnknownDataFormat(f"{path.name} cannot be read: {error.strerror}.") from error
    return sniff(head, path.name, pointer="/uri")


HEAD_BYTES = 300
"""Enough for the name of a zip's first member (a path of up to 255 bytes)."""
