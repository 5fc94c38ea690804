"""Tells that this worker lives: a row that is touched again and again."""

import os
import secrets
import socket
from collections.abc import Callable

from service.db.base import utc_now
from service.db.repository import Repository
from service.db.session import SessionFactory, transaction
from service.db.tables import WorkerRecord


def make_worker_id() -> str:
    """Host name, process id and a random part: two workers never have the same."""
    return f"{socket.gethostname()[:100]}-{os.getpid()}-{secrets.token_hex(4)}"


class Heartbeat:
    """The row of one worker.

    Args:
        slots: Asked at each beat how many runs there may be at a time.
    """

    def __init__(
        self, sessions: SessionFactory, worker_id: str, *, device: str, slots: Callable[[], int]
    ) -> None:
        self._sessions = sessions
        self._worker_id = worker_id
        self._device = device
        self._slots = slots
        self._started_at = utc_now()

    def beat(self) -> None:
        """Writes the row, or touches it."""
        with transaction(self._sessions) as session:
            session.merge(
                WorkerRecord(
                    id=self._worker_id,
                    hostname=socket.gethostname()[:200],
                    device=self._device,
                    slots=self._slots(),
                    started_at=self._started_at,
                    heartbeat_at=Repository.from_session(session).now(),
                )
            )

    def sign_off(self) -> None:
        """Removes the row: the worker is gone on purpose."""
        with transaction(self._sessions) as session:
            record = session.get(WorkerRecord, self._worker_id)
            if record is not None:
                session.delete(record)
