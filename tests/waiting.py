"""Waiting for what another process or thread brings about."""

import time
from collections.abc import Callable

from sqlalchemy import text

from service.db.session import SessionFactory, transaction


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Raises `TimeoutError` if something does not come to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it does not hold after {seconds:g} s")
        time.sleep(0.01)


def waits_for_a_lock(sessions: SessionFactory) -> bool:
    """Whether anybody waits for another's transaction in this database, a PostgreSQL."""
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with transaction(sessions) as session:
        return bool(session.scalar(text(query)))
