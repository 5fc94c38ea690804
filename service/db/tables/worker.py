"""Workers that report."""

from datetime import datetime

from sqlalchemy import Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, UtcDateTime, utc_now


class WorkerRecord(Base):
    """One worker process; without a fresh heartbeat it counts as gone."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Host name, process id and a random part."""
    hostname: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(40))
    slots: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, index=True)
