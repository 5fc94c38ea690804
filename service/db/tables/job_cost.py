"""What finished jobs took: what estimates rest on."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id, Json


class JobCost(Base):
    """One job that went through at once, and what it took."""

    __tablename__ = "job_costs"
    __table_args__ = (
        Index(None, "device", "job_id"),
        Index(None, "tenant_id", "device", "architecture", "job_id"),
        Index(None, "tenant_id", "model_sha256", "job_id"),
    )

    job_id: Mapped[str] = mapped_column(
        Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    """Sorts by time."""
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    device: Mapped[str] = mapped_column(String(10))
    """`cpu` or `cuda`."""
    architecture: Mapped[str] = mapped_column(String(80))
    """As the run found it."""
    model_sha256: Mapped[str] = mapped_column(String(64))
    """Of the upload: another job on the same file need not guess."""
    measured: Mapped[dict[str, Any]] = mapped_column(Json)
    """A `sanitizer.cost.workload.Measured`."""
