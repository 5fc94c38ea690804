"""Jobs and the graph of their states."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id, Json, UtcDateTime, new_id, utc_now


class JobStatus(StrEnum):
    """Where a job is in its life. The verdict on its model is another field."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def next(self) -> frozenset["JobStatus"]:
        """The states that may follow this one."""
        return _NEXT[self]

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows, short of a retry as a new job."""
        return not self.next

    @property
    def is_active(self) -> bool:
        """Whether a worker holds a lease on it."""
        return self in (JobStatus.RUNNING, JobStatus.CANCELLING)

    @property
    def is_cancellable(self) -> bool:
        """Whether a cancel request changes anything."""
        return JobStatus.CANCELLED in self.next or JobStatus.CANCELLING in self.next


_NEXT: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    # Back to `queued`: the machine was at fault and tries are left, or the lease ran out.
    JobStatus.RUNNING: frozenset(
        {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLING, JobStatus.QUEUED}
    ),
    # A run that ends while its cancel request is on the way keeps its result or its error.
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class Job(Base):
    """One run of a method over one model.

    `attempt` is the fencing number of the lease: it grows by one with every claim, and every write
    of a worker is conditional on it, so that a worker that lost its lease can write no more.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "status IN ({})".format(", ".join(f"'{s}'" for s in JobStatus)), name="status"
        ),
        Index(None, "tenant_id", "id"),
        Index(None, "status", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("job"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(20), default=JobStatus.QUEUED)
    verdict: Mapped[str | None] = mapped_column(String(20))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    clean_dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    evaluation_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    """The validated request, every default filled in: what `GET` shows and `retry` repeats."""
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    retry_of_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )

    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=3)
    worker_id: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When its message last went to the broker; none: it never did."""
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """No worker takes it earlier, and no message is sent; none: at once."""
    device: Mapped[str | None] = mapped_column(String(10))
    """The kind of device it asks for (`cpu`, `cuda`); none: whatever the worker has."""
    checkpoint_key: Mapped[str | None] = mapped_column(String(300), index=True)
    """Where in the store the last checkpoint of its run lies, for a worker on another host."""
    checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """W3C trace context of the request that submitted it, where tracing is on."""

    stage: Mapped[str | None] = mapped_column(String(20))
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    """Share of the run that is done, 0 to 1."""

    error_code: Mapped[str | None] = mapped_column(String(60))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_data: Mapped[dict[str, Any] | None] = mapped_column(Json)
    summary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """Main figures of the report: see `service.jobs.schemas`."""

    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """First claim."""
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
