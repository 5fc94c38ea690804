"""Queries for figures: over all tenants, in numbers alone."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select

from sanitizer.report.model import ArtifactKind
from service.db.repository import Repository
from service.db.tables import Artifact, Dataset, Job, JobStatus, Model, WorkerRecord

ACTIVE = tuple(status for status in JobStatus if status.is_active)


@dataclass(frozen=True)
class Waiting:
    """Jobs that wait for a kind of device.

    Attributes:
        oldest_seconds: How long the one that has waited longest has done so.
    """

    jobs: int
    oldest_seconds: float


@dataclass(frozen=True)
class Reporting:
    """Workers with a kind of device that report, and the jobs that they can run at a time."""

    workers: int
    slots: int


class FigureRepository(Repository):
    """Counts and sums, each one statement."""

    def jobs_by_status(self) -> dict[str, int]:
        """Jobs by status; a status that no job has is left out."""
        query = select(Job.status, func.count()).group_by(Job.status)
        return dict(self._session.execute(query).all())

    def waiting(self, now: datetime) -> dict[str | None, Waiting]:
        """Queued jobs by the device that they ask for; none: any."""
        # Not since it was created: a job that ran for hours and was given back waits since then,
        # and nothing touches this column of a job that waits.
        since = func.min(Job.updated_at)
        query = (
            select(Job.device, func.count(), since)
            .where(Job.status == JobStatus.QUEUED)
            .group_by(Job.device)
        )
        return {
            device: Waiting(jobs, max(0.0, (now - oldest).total_seconds()))
            for device, jobs, oldest in self._session.execute(query)
        }

    def reporting(self, now: datetime, silence_seconds: float) -> dict[str, Reporting]:
        """Workers by device that have reported lately."""
        query = (
            select(WorkerRecord.device, func.count(), func.sum(WorkerRecord.slots))
            .where(WorkerRecord.heartbeat_at >= now - timedelta(seconds=silence_seconds))
            .group_by(WorkerRecord.device)
        )
        return {
            device: Reporting(workers, int(slots))
            for device, workers, slots in self._session.execute(query)
        }

    def silent(self, now: datetime, silence_seconds: float) -> dict[str, int]:
        """Workers by device that have fallen silent without signing off, and are still listed."""
        query = (
            select(WorkerRecord.device, func.count())
            .where(WorkerRecord.heartbeat_at < now - timedelta(seconds=silence_seconds))
            .group_by(WorkerRecord.device)
        )
        return dict(self._session.execute(query).all())

    def busy(self) -> dict[str | None, int]:
        """Jobs that run, by the device of their worker; none: the worker is not listed."""
        query = (
            select(WorkerRecord.device, func.count())
            .select_from(Job)
            .join(WorkerRecord, WorkerRecord.id == Job.worker_id, isouter=True)
            .where(Job.status.in_(ACTIVE))
            .group_by(WorkerRecord.device)
        )
        return dict(self._session.execute(query).all())

    def expired(self, now: datetime) -> int:
        """Jobs whose lease has run out and that nobody has taken back yet."""
        query = (
            select(func.count())
            .select_from(Job)
            .where(Job.status.in_(ACTIVE), Job.lease_expires_at < now)
        )
        return self._session.scalar(query) or 0

    def stored_bytes(self) -> dict[str, int]:
        """Bytes in the store, by what they are; the file of a sanitized model counts as a model."""
        sums = {
            "models": select(func.sum(Model.bytes)).where(Model.deleted_at.is_(None)),
            "datasets": select(func.sum(Dataset.bytes)).where(
                Dataset.deleted_at.is_(None), Dataset.storage_key.is_not(None)
            ),
            "artifacts": select(func.sum(Artifact.bytes)).where(
                Artifact.kind != ArtifactKind.MODEL
            ),
        }
        return {kind: int(self._session.scalar(query) or 0) for kind, query in sums.items()}
