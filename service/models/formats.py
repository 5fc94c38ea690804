"""Whether an upload can be a checkpoint, without reading what is in it: that is a job's."""

from sanitizer.errors import UnreadableCheckpoint
from sanitizer.networks.signatures import (
    EXPECTED,
    ZIP_START,
    checkpoint_folder,
    foreign_kind,
    names_in_zip,
)
from service.errors import FieldError, UnknownModelFormat
from service.multipart import Upload


def look(head: bytes, filename: str) -> None:
    """Refuses what is surely no checkpoint by its first bytes.

    Raises:
        UnknownModelFormat: It is none.
    """
    kind = foreign_kind(head)
    if kind is not None:
        raise _refusal(f"{filename} looks like {kind}. {EXPECTED}")


def look_into_archive(upload: Upload) -> None:
    """Refuses a zip archive that is no file of `torch.save`, by the names in it.

    Raises:
        UnknownModelFormat: It is none.
    """
    names = names_in_zip(upload.tail) if upload.head.startswith(ZIP_START) else None
    if names is None:
        return
    try:
        checkpoint_folder(names)
    except UnreadableCheckpoint as error:
        raise _refusal(f"{upload.filename}: {error}") from error


def _refusal(detail: str) -> UnknownModelFormat:
    return UnknownModelFormat(detail, errors=[FieldError("/file", "is no checkpoint")])
