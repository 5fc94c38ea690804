"""Files on their way to the server: checksums, byte counts, folders turned into archives."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from service.cli.failures import UnsupportedInput, WrongUsage

OnBytes = Callable[[int], None]
"""Called with the number of bytes handled since the last call; negative: it starts over."""

_CHUNK = 1 << 20


class CountedFile:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes | None) -> None:
        self._file = file
        self._on_bytes = on_bytes or _ignore
        self._counted = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._counted += len(data)
        self._on_bytes(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to another place; going back to the start takes back what was counted."""
        place = self._file.seek(offset, whence)
        if place == 0 and self._counted:
            self._on_bytes(-self._counted)
            self._counted = 0
        return place

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def fileno(self) -> int:
        """The descriptor: the sender asks it for the size."""
        return self._file.fileno()

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(_CHUNK):
            yield data


def sha256_of(path: Path, on_bytes: OnBytes | None = None) -> str:
    """The SHA-256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        for piece in CountedFile(opened, on_bytes):
            digest.update(piece)
    return digest.hexdigest()


def readable_file(path: Path) -> Path:
    """The path, if there is a file that can be read.

    Raises:
        WrongUsage: There is none.
    """
    if path.is_dir():
        raise WrongUsage(f"{path} is a folder; a file is expected.")
    if not path.is_file():
        raise WrongUsage(f"There is no file {path}.")
    if not os.access(path, os.R_OK):
        raise WrongUsage(f"The file {path} may not be read by you.")
    return path


def images_in(folder: Path) -> list[Path]:
    """The files in the class folders of a folder, sorted; hidden ones are left out.

    Raises:
        UnsupportedInput: It holds no class folders, or no files in them.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [
        path
        for each in classes
        for path in sorted(each.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise UnsupportedInput(
            f"{folder} holds no images in class folders; expected one folder a class, such as "
            f"{folder / '0'}/picture.png."
        )
    return found


def sendable(name: str) -> str:
    """A file's name as text that can be sent: bytes of it that are no UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


@contextmanager
def zipped(folder: Path, on_file: Callable[[], None] | None = None) -> Iterator[Path]:
    """An archive of the class folders of a folder, gone after the block.

    Stored, not deflated: images are compressed already.

    Raises:
        UnsupportedInput: It holds no class folders, or a name that an archive cannot hold.
    """
    files = images_in(folder)
    _refuse_names(folder, files)
    with TemporaryDirectory(prefix="sanitizer-") as temporary:
        path = Path(temporary) / f"{sendable(folder.resolve().name) or 'data'}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in files:
                # The same folder gives the same archive: no times, no permissions.
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                entry.external_attr = 0o600 << 16
                entry.file_size = file.stat().st_size
                with file.open("rb") as source, archive.open(entry, "w") as target:
                    while piece := source.read(_CHUNK):
                        target.write(piece)
                if on_file is not None:
                    on_file()
        yield path


def _refuse_names(folder: Path, files: list[Path]) -> None:
    # Another name for them could be one that is there, and folders' names are those of classes.
    names = {file: str(file.relative_to(folder)) for file in files}
    wrong = [file for file, name in names.items() if sendable(name) != name]
    if wrong:
        raise UnsupportedInput(
            f"{sendable(str(wrong[0]))}: this name is not UTF-8, as names in an archive must be"
            + (f", nor are those of {len(wrong) - 1} more files." if len(wrong) > 1 else "."),
            hint="Rename them (`convmv -f latin1 -t utf8 -r --notest FOLDER`), or pack the folder "
            "into a zip yourself.",
        )


def _ignore(_count: int) -> None:
    """Nobody wants to know."""
