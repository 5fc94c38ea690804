"""Figures of a job, one row a value."""

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id, UtcDateTime


class JobMetric(Base):
    """One value of one epoch; of an epoch that is told again, the last."""

    __tablename__ = "job_metrics"
    __table_args__ = (Index(None, "job_id", "stage", "name", "epoch", unique=True),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    stage: Mapped[str] = mapped_column(String(20))
    epoch: Mapped[int] = mapped_column(Integer)
    """1-based; 0: an evaluation outside training."""
    name: Mapped[str] = mapped_column(String(80))
    value: Mapped[float] = mapped_column(Float)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
