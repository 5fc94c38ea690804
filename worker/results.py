"""What a run leaves, checked and put into the store.

The child reads untrusted files, so nothing it says of its own is believed: names, links, sizes and
hashes are checked.
"""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from sanitizer.errors import Fault
from sanitizer.events import Artifact as NamedFile
from sanitizer.report.model import ArtifactKind, Report
from service.db.base import new_id
from service.jobs.codes import WorkerCode
from service.jobs.service import StoredArtifact
from service.storage import ObjectStore, StorageError
from service.storage.regular import open_regular
from worker.outcomes import RunFailed, Succeeded, bad_result
from worker.patience import Patience

MAX_FILES = 100
MAX_NAME_BYTES = 255
MAX_REPORT_BYTES = 64 << 20
MAX_BYTES = {
    ArtifactKind.REPORT: MAX_REPORT_BYTES,
    ArtifactKind.REPORT_PAGE: 64 << 20,
    ArtifactKind.PLOT: 16 << 20,
}
"""Of one file; a model has the limit that every file of a run has."""
MEDIA_TYPES = {
    ArtifactKind.MODEL: "application/octet-stream",
    ArtifactKind.REPORT: "application/json",
    ArtifactKind.REPORT_PAGE: "text/html; charset=utf-8",
    ArtifactKind.PLOT: "image/png",
}
"""What browsers are told, whatever the run says."""


def keep(
    store: ObjectStore,
    job_id: str,
    out: Path,
    files: Sequence[NamedFile],
    *,
    check: Callable[[], None],
    patience: Patience,
) -> Succeeded:
    """Puts the files of a result into the store.

    Args:
        out: The folder they are in.
        check: Called again and again; raises if the attempt shall not go on.
        patience: With a store that does not answer.

    Raises:
        RunFailed: The result cannot be taken, or the store not written; nothing stays in it.
    """
    if len(files) > MAX_FILES:
        raise bad_result(f"it names {len(files)} files, at most {MAX_FILES} are taken")
    for file in files:
        _check_name(file.name)
    if len({file.name for file in files}) < len(files):
        raise bad_result("it names a file twice")
    report = _read_report(out, files)
    stored: list[StoredArtifact] = []
    try:
        for file in files:
            check()
            stored.append(_store(store, job_id, out, file, check, patience))
    except BaseException:
        forget(store, stored)
        raise
    return Succeeded(report, stored)


def forget(store: ObjectStore, artifacts: Sequence[StoredArtifact]) -> None:
    """Removes files of a result that nobody will point at."""
    for artifact in artifacts:
        try:
            store.delete(artifact.storage_key)
        except StorageError as error:
            if type(error) is StorageError:
                return  # it does not answer: what stays is collected


def _store(
    store: ObjectStore,
    job_id: str,
    out: Path,
    file: NamedFile,
    check: Callable[[], None],
    patience: Patience,
) -> StoredArtifact:
    artifact_id = new_id("artifact")
    key = f"jobs/{job_id}/{artifact_id}"
    try:
        limit = MAX_BYTES.get(file.kind)
        if limit is not None and (out / file.name).lstat().st_size > limit:
            raise bad_result(f"{file.name} has more than {limit} bytes")
        put = patience.of(lambda: store.put_file(key, out / file.name, check=check))
    except StorageError as error:
        raise RunFailed(
            WorkerCode.STORE_UNAVAILABLE, Fault.MACHINE, f"The result could not be stored: {error}."
        ) from error
    except OSError as error:
        raise bad_result(f"{file.name} cannot be read: {error.strerror}") from error
    artifact = StoredArtifact(
        id=artifact_id,
        name=file.name,
        kind=file.kind,
        media_type=MEDIA_TYPES[file.kind],
        bytes=put.bytes,
        sha256=put.sha256,
        storage_key=key,
    )
    if (put.bytes, put.sha256) != (file.bytes, file.sha256):
        forget(store, [artifact])
        raise bad_result(f"{file.name} is not what it was when the run named it")
    return artifact


def _check_name(name: str) -> None:
    # Controls and lone surrogates alone: people's file names have all other characters.
    plain = name not in ("", ".", "..") and "/" not in name
    plain = plain and not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
    if not plain or len(name.encode()) > MAX_NAME_BYTES:
        raise bad_result(f"a file is named {name[:MAX_NAME_BYTES]!r}")


def _read_report(out: Path, files: Sequence[NamedFile]) -> Report:
    names = [file.name for file in files if file.kind == ArtifactKind.REPORT]
    if len(names) != 1:
        raise bad_result(f"it names {len(names)} reports")
    try:
        with open_regular(out / names[0]) as file:
            content = file.read(MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise bad_result(f"the report cannot be read: {error.strerror}") from error
    if len(content) > MAX_REPORT_BYTES:
        raise bad_result(f"the report has more than {MAX_REPORT_BYTES} bytes")
    try:
        return Report.model_validate_json(content)
    except ValidationError as error:
        raise bad_result(f"the report is not valid: {error}") from error
