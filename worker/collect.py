"""Removes files from the store that no row points at.

They are left by workers and services that were killed between writing a file and its row, and by a
store that was away when a file should have gone.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice

import structlog
from sqlalchemy import CompoundSelect, select, union_all
from sqlalchemy.orm import Session

from service.db.base import utc_now
from service.db.session import SessionFactory, transaction
from service.db.tables import Artifact, Dataset, Job, Model
from service.jobs.repository import JobRepository
from service.settings import Settings
from service.storage import ListedObject, ObjectStore, StorageError
from worker import checkpoints
from worker.periodic import Periodic

BATCH = 500
COLLECT_SECONDS = 6 * 3600.0
"""Between two rounds of one process; a round lists the whole store."""
PREFIXES = ("tenants", "jobs", "ping")
"""Where this software puts files; what else lies in the bucket is somebody else's."""

log = structlog.get_logger(__name__)


class Collector:
    """One round of tidying at a time.

    Args:
        min_age: Younger files may be waiting for their row.
        is_stopping: Asked again and again; a round ends early where it says so.
    """

    def __init__(
        self,
        store: ObjectStore,
        sessions: SessionFactory,
        min_age: timedelta,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._min_age = min_age
        self._is_stopping = is_stopping

    def run(self) -> None:
        """Does all of it; a store or a database that is away is tried again the next time."""
        self.drop_checkpoints()
        self.remove_unfinished()
        self.remove_orphans()

    def drop_checkpoints(self) -> int:
        """Removes checkpoints of jobs that ended while no worker had them; gives how many."""
        with transaction(self._sessions) as session:
            left = JobRepository.from_session(session).over_with_checkpoint(limit=BATCH)
        for job_id in left:
            if self._is_stopping():
                break
            checkpoints.drop(self._store, self._sessions, job_id)
        return len(left)

    def remove_unfinished(self) -> int:
        """Removes what services and workers that were killed had written of a file; gives how many.

        It has no name in the store yet, so no list of it shows it.
        """
        removed = 0
        for prefix in PREFIXES:
            removed += self._store.remove_unfinished(
                prefix, utc_now() - self._min_age, is_stopping=self._is_stopping
            )
        if removed:
            log.info("unfinished files removed from the store", files=removed)
        return removed

    def remove_orphans(self) -> int:
        """Removes files that are old and that no row names; gives how many."""
        removed = 0
        for prefix in PREFIXES:
            for batch in _batches(self._old_objects(prefix)):
                if self._is_stopping():
                    return removed
                with transaction(self._sessions) as session:
                    named = find_named(session, [each.key for each in batch])
                for each in batch:
                    if each.key not in named:
                        removed += self._remove(each)
        return removed

    def _old_objects(self, prefix: str) -> Iterator[ListedObject]:
        before = utc_now() - self._min_age
        for each in self._store.list(prefix):
            if self._is_stopping():  # there may be millions, all young
                return
            if each.modified_at < before:
                yield each

    def _remove(self, orphan: ListedObject) -> bool:
        try:
            self._store.delete(orphan.key)
        except StorageError as error:
            log.warning("an orphan stays in the store", key=orphan.key, reason=str(error))
            return False
        log.info("orphan removed from the store", key=orphan.key, bytes=orphan.bytes)
        return True


def make_collecting(
    settings: Settings,
    sessions: SessionFactory,
    store: ObjectStore,
    is_stopping: Callable[[], bool],
) -> Periodic:
    """A thread that tidies up now and then; not yet started."""
    collector = Collector(store, sessions, timedelta(hours=settings.orphan_hours), is_stopping)
    # Not at the start: of a fleet that is restarted every worker would list the store at once.
    first_after = random.uniform(0.1, 1) * COLLECT_SECONDS
    return Periodic("collect", collector.run, COLLECT_SECONDS, first_after=first_after)


def find_named(session: Session, keys: list[str]) -> set[str]:
    """Those of the keys that a row points at."""
    query: CompoundSelect[str | None] = union_all(
        # Files of deleted models and data sets should be gone.
        select(Model.storage_key).where(Model.storage_key.in_(keys), Model.deleted_at.is_(None)),
        select(Dataset.storage_key).where(
            Dataset.storage_key.in_(keys), Dataset.deleted_at.is_(None)
        ),
        select(Artifact.storage_key).where(Artifact.storage_key.in_(keys)),
        select(Job.checkpoint_key).where(Job.checkpoint_key.in_(keys)),
    )
    return {key for key in session.scalars(query) if key is not None}


def _batches(objects: Iterable[ListedObject]) -> Iterator[list[ListedObject]]:
    rest = iter(objects)
    while batch := list(islice(rest, BATCH)):
        yield batch
