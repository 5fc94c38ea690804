"""A run's checkpoint in the store, so that a worker on another host can go on from it.

The file is written and read by children alone; here it is bytes.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from service.db.base import new_id
from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, transaction
from service.jobs import service as jobs
from service.jobs.service import Claim, LeaseLost, StoredCheckpoint
from service.storage import ObjectStore, StorageError
from worker.folders import JobFolder
from worker.patience import Patience
from worker.periodic import Periodic

FILE_NAME = "checkpoint.pt"
"""As `sanitizer.run_state` names it."""

log = structlog.get_logger(__name__)


def bring(store: ObjectStore, folder: JobFolder, claim: Claim, patience: Patience) -> bool:
    """Brings the stored checkpoint to the job's folder, unless a newer one lies there.

    A folder whose last attempt was the one before this claim has the newest there is. A checkpoint
    that cannot be had is no reason to fail: the run begins with what there is. If it is cut short
    before it has stored one of its own, the next attempt looks for this one again.

    Args:
        patience: With a store that does not answer.

    Returns:
        Whether one was brought.
    """
    here = folder.last_attempt
    if claim.checkpoint is None or here == claim.attempt - 1:
        folder.last_attempt = claim.attempt
        return False
    folder.last_attempt = None
    stored = claim.checkpoint
    # Not into `work` at once: a child writes there, and might have left a link to write through.
    arrived = folder.path / FILE_NAME
    try:
        patience.of(
            lambda: store.fetch(
                stored.storage_key, arrived, sha256=stored.sha256, check=patience.check
            )
        )
        arrived.replace(folder.work / FILE_NAME)
    except StorageError as error:
        log.warning("the checkpoint cannot be had", reason=str(error))
        return False
    folder.last_attempt = claim.attempt
    log.info("the run goes on from a checkpoint in the store", attempt_before=claim.attempt - 1)
    return True


def drop(store: ObjectStore, sessions: SessionFactory, job_id: str) -> None:
    """Removes the checkpoint of a job that is over."""
    try:
        with transaction(sessions) as session:
            key = jobs.drop_checkpoint(session, job_id)
        if key is not None:
            store.delete(key)
    except (StorageError, *DATABASE_AWAY) as error:
        log.warning("the checkpoint of a job that is over stays", reason=str(error))


class CheckpointKeeper:
    """Copies a run's checkpoint to the store now and then, in a thread, as a context manager.

    Args:
        seconds: Between two copies; 0: never.
    """

    def __init__(
        self,
        store: ObjectStore,
        sessions: SessionFactory,
        claim: Claim,
        folder: JobFolder,
        seconds: float,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._claim = claim
        self._path: Path = folder.work / FILE_NAME
        self._kept_key = claim.checkpoint.storage_key if claim.checkpoint else None
        self._kept = self._version()
        name = f"checkpoint {claim.job_id}"
        self._thread = Periodic(name, self.keep, seconds) if seconds else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._thread is not None:
            self._thread.stop()

    def keep(self) -> None:
        """Copies the checkpoint, if it is another one than the last time."""
        version = self._version()
        if version is None or version == self._kept:
            return
        key = f"jobs/{self._claim.job_id}/{new_id('checkpoint')}"
        try:
            stored = self._store.put_file(key, self._path)
        except (StorageError, OSError) as error:
            log.warning("the checkpoint could not be stored", reason=str(error))
            return
        try:
            with transaction(self._sessions) as session:
                jobs.keep_checkpoint(session, self._claim, StoredCheckpoint(key, stored.sha256))
        except LeaseLost as error:
            log.warning("the checkpoint is not kept", reason=str(error))
            self._delete(key)
            return
        except DATABASE_AWAY as error:
            # Whether the row names it now is not known: if it does not, it is collected later.
            log.warning("whether the checkpoint is kept is not known", reason=str(error))
            return
        self._kept = version
        if self._kept_key is not None:
            self._delete(self._kept_key)
        self._kept_key = key

    def _version(self) -> tuple[int, int] | None:
        """What tells one checkpoint from another; the file is replaced whole, never changed."""
        with suppress(OSError):
            found = os.lstat(self._path)
            return (found.st_ino, found.st_mtime_ns)
        return None

    def _delete(self, key: str) -> None:
        with suppress(StorageError):
            self._store.delete(key)
