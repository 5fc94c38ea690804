"""Rows that have had their time."""

from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from service.db.base import utc_now
from service.db.tables import IdempotencyRecord, WorkerRecord

WORKER_DAYS = 1
"""How long a worker that did not sign off stays in the table, for people who look for it."""


def drop_expired(session: Session) -> int:
    """Deletes answers that are not repeated any more and workers long gone; gives how many."""
    now = utc_now()
    doomed = (
        delete(IdempotencyRecord).where(IdempotencyRecord.expires_at < now),
        delete(WorkerRecord).where(WorkerRecord.heartbeat_at < now - timedelta(days=WORKER_DAYS)),
    )
    rows = 0
    for statement in doomed:
        rows += len(session.execute(statement.returning(*statement.table.primary_key)).all())
    return rows
