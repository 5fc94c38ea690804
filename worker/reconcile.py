"""Puts right what got lost: messages, leases, rows that have had their time.

Runs in a thread of every worker; `python -m worker.reconcile` runs it alone. Any number may run at
once: each step is decided by a conditional UPDATE.
"""

import math
import signal
import threading
import time

import structlog
from celery import Celery
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from service import logs, queue
from service.db.expiry import drop_expired
from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, for_writing, transaction
from service.jobs import service as jobs
from service.settings import Settings
from service.storage import make_store
from worker.collect import make_collecting
from worker.periodic import Periodic

log = structlog.get_logger(__name__)


class Reconciler:
    """One round of repairs at a time."""

    def __init__(self, settings: Settings, sessions: SessionFactory, celery: Celery) -> None:
        self._settings = settings
        self._sessions = sessions
        self._celery = celery
        self._away_at = -math.inf  # the last time that the database was, of the monotonic clock

    def run(self) -> None:
        """Does every repair; one that fails does not keep the others from being done."""
        for repair in (self.take_back, self.resend, self.drop_expired):
            try:
                repair()
            except queue.BrokerUnavailable as error:
                log.warning("broker down, messages wait", reason=str(error))
            except DATABASE_AWAY as error:
                log.warning("database down, repairs wait", reason=str(error))
            except Exception:
                log.exception("a repair failed, tried again later", repair=repair.__name__)

    def take_back(self) -> None:
        """Takes jobs back from workers that fell silent.

        While the database was away none could renew its lease: for one lease after that all may.
        """
        try:
            if time.monotonic() - self._away_at < self._settings.lease_seconds:
                with transaction(self._sessions) as session:
                    session.connection()
            else:
                self._take_back()
        except DATABASE_AWAY as error:
            if _kept_all_out(error):
                self._away_at = time.monotonic()
            raise

    def _take_back(self) -> None:
        taken = 0
        while taken < jobs.BATCH:
            with transaction(self._sessions) as session:  # one each: no lock is held for another
                found = jobs.take_back_expired(session, limit=1)
            if not found:
                return
            for job in found:
                taken += 1
                log.warning("job taken back", job_id=job.id, attempt=job.attempt, status=job.status)
                queue.publish_wakeup(self._celery, job.id)

    def resend(self) -> None:
        """Sends the messages of queued jobs that have none, or whose message seems lost.

        Queue by queue: in one that nobody takes from, messages of jobs that are over may lie.

        Raises:
            BrokerUnavailable: Nothing can be sent.
        """
        for device, messages in queue.count_messages(self._celery).items():
            with transaction(self._sessions) as session:
                lost = jobs.jobs_to_resend(
                    session, device, self._settings.resend_seconds, messages=messages
                )
            for position, job_id in enumerate(lost):
                try:
                    queue.send_job(self._celery, job_id, device)
                except queue.BrokerUnavailable:
                    with transaction(self._sessions) as session:
                        for unsent in lost[position:]:
                            jobs.mark_unsent(session, unsent)
                    raise
                log.info("job sent again", job_id=job_id)

    def drop_expired(self) -> None:
        """Deletes rows that have had their time."""
        with transaction(self._sessions) as session:
            drop_expired(session)


def _kept_all_out(error: SQLAlchemyError) -> bool:
    """Whether nobody could reach the database; somebody else's lock is in the way of one alone."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    lock = getattr(error.orig, "sqlite_errorname", "")
    if lock.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return False
    # PostgreSQL gives none where there is no connection: 08 if it breaks, 53 if the server is out
    # of disk, memory or connections, 57P if it goes down.
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith(("08", "53", "57P"))


def serve(settings: Settings, over: threading.Event) -> None:
    """Reconciles until it is over."""
    sessions = for_writing(settings.sessions)
    reconciler = Reconciler(settings, sessions, queue.make_producer(settings))

    def run() -> None:
        reconciler.run()
        if settings.alive_file is not None:
            settings.alive_file.touch()

    threads = [
        Periodic("reconcile", run, settings.reconcile_seconds),
        make_collecting(settings, sessions, make_store(settings), over.is_set),
    ]
    for thread in threads:
        thread.start()
    over.wait()
    for thread in threads:
        thread.stop()
    settings.sessions.kw["bind"].dispose()


def main() -> None:
    """Reconciles until SIGTERM or Ctrl-C."""
    settings = Settings()
    logs.configure(settings)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    serve(settings, over)


if __name__ == "__main__":
    main()
