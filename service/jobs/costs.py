"""Queries on what finished jobs took."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select

from sanitizer.cost.workload import DeviceKind, Measured
from service.db.repository import Repository
from service.db.tables import Job, JobCost


class CostRepository(Repository):
    """Costs of finished jobs, newest first where there are several."""

    def add(self, cost: JobCost) -> None:
        """Inserts a row."""
        self._session.add(cost)
        self._session.flush()

    def of_architecture(
        self, tenant_id: str, device: DeviceKind, architecture: str, *, limit: int
    ) -> list[Measured]:
        """The tenant's own jobs with an architecture."""
        query = select(JobCost.measured).where(
            JobCost.tenant_id == tenant_id,
            JobCost.device == device,
            JobCost.architecture == architecture,
        )
        return _read(self._session.scalars(query.order_by(JobCost.job_id.desc()).limit(limit)))

    def of_device(self, device: DeviceKind, *, limit: int) -> list[Measured]:
        """Jobs of all tenants on a kind of device: for the speed of the machine alone."""
        query = select(JobCost.measured).where(JobCost.device == device)
        return _read(self._session.scalars(query.order_by(JobCost.job_id.desc()).limit(limit)))

    def of_file(self, tenant_id: str, model_sha256: str) -> Measured | None:
        """The tenant's last job on a file of weights, under whatever id it was uploaded."""
        query = select(JobCost.measured).where(
            JobCost.tenant_id == tenant_id, JobCost.model_sha256 == model_sha256
        )
        found = _read(self._session.scalars(query.order_by(JobCost.job_id.desc()).limit(1)))
        return found[0] if found else None

    def images_of(self, dataset_id: str) -> int | None:
        """How many images a data set has, as the last job that used it found."""
        sides = (
            (Job.clean_dataset_id, "clean_available"),
            (Job.evaluation_dataset_id, "evaluation_available"),
        )
        for column, field in sides:
            query = (
                select(JobCost.measured)
                .join(Job, Job.id == JobCost.job_id)
                .where(column == dataset_id)
                .order_by(JobCost.job_id.desc())
                .limit(1)
            )
            for measured in _read(self._session.scalars(query)):
                return int(getattr(measured, field))
        return None


def _read(rows: Iterable[dict[str, Any]]) -> list[Measured]:
    """What this version understands of what it or another one has stored."""
    found = []
    for row in rows:
        try:
            found.append(Measured.model_validate(row))
        except ValidationError:
            continue
    return found
