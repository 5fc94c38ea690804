"""The story of a job, one row an event."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id, Json, UtcDateTime, utc_now


class JobEvent(Base):
    """What streaming clients see; `sequence` is their `Last-Event-ID`."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(
        Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True)
    """1, 2, 3, ... within the job, without gaps, whatever the attempt."""
    attempt: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(String(20))
    """`status` (a change of the job's state), or the type of a `sanitizer.events` event."""
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
