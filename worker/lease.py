"""Keeps a job's lease fresh while its supervisor works, and notices a cancel request."""

import threading
import time

import structlog

from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, transaction
from service.jobs import service as jobs
from service.jobs.service import Claim, LeaseState
from worker.periodic import Periodic

LOOK_SECONDS = 1.0
"""How soon a cancel request is noticed."""

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Renews the lease of a claim in a thread of its own, as a context manager.

    While the database is away nothing is known, and the run goes on: every write is fenced, so at
    worst its work is lost.
    """

    def __init__(self, sessions: SessionFactory, claim: Claim, heartbeat_seconds: float) -> None:
        self._sessions = sessions
        self._claim = claim
        self._heartbeat_seconds = heartbeat_seconds
        self._renewed_at = time.monotonic()
        self._lost = threading.Event()
        self._cancel_requested = threading.Event()
        self._thread = Periodic(
            f"lease {claim.job_id}", self._keep, min(LOOK_SECONDS, heartbeat_seconds)
        )

    @property
    def lost(self) -> bool:
        """Whether the job is somebody else's now."""
        return self._lost.is_set()

    @property
    def cancel_requested(self) -> bool:
        """Whether the job shall stop."""
        return self._cancel_requested.is_set()

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.stop()

    def note(self, state: LeaseState) -> None:
        """Takes in what somebody has learnt of the lease."""
        if state == LeaseState.LOST:
            self._lost.set()
        elif state == LeaseState.CANCEL_REQUESTED:
            self._cancel_requested.set()

    def _keep(self) -> None:
        due = time.monotonic() - self._renewed_at >= self._heartbeat_seconds
        try:
            with transaction(self._sessions) as session:
                self.note((jobs.renew if due else jobs.look)(session, self._claim))
        except DATABASE_AWAY as error:
            log.warning("the lease cannot be renewed", reason=str(error))
            return
        if due:
            self._renewed_at = time.monotonic()
