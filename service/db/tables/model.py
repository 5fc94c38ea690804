"""Models: uploaded ones and sanitized ones."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id, Json, UtcDateTime, new_id, utc_now


class Model(Base):
    """A file of weights with what is needed to run it."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("model"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    filename: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(300), index=True)
    options: Mapped[dict[str, Any]] = mapped_column(Json)
    """A `sanitizer.spec.ModelOptions`: architecture, input size, mean, std."""
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    source_job_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL", use_alter=True), index=True
    )
    """The job this model came out of; none for an upload."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Jobs keep pointing at a deleted model; its file is gone from the store."""
