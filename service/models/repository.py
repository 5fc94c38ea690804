"""Queries on models."""

from collections.abc import Collection

from sqlalchemy import select

from service.db.repository import Repository
from service.db.tables import Job, JobStatus, Model


class ModelRepository(Repository):
    """Models that are not deleted, by tenant."""

    def add(self, model: Model) -> None:
        """Inserts a row."""
        self._session.add(model)
        self._session.flush()

    def get(self, tenant_id: str, model_id: str) -> Model | None:
        """A model of the tenant."""
        return self._session.scalar(
            select(Model).where(
                Model.tenant_id == tenant_id, Model.id == model_id, Model.deleted_at.is_(None)
            )
        )

    def page(self, tenant_id: str, *, after: str | None, limit: int) -> list[Model]:
        """Models of the tenant, newest first, from below the id `after`."""
        query = select(Model).where(Model.tenant_id == tenant_id, Model.deleted_at.is_(None))
        if after is not None:
            query = query.where(Model.id < after)
        return list(self._session.scalars(query.order_by(Model.id.desc()).limit(limit)))

    def unfinished_jobs(self, model_id: str, limit: int = 10) -> list[str]:
        """Ids of jobs that need the model and have not ended."""
        return list(
            self._session.scalars(
                select(Job.id)
                .where(Job.model_id == model_id, Job.status.in_(unfinished()))
                .order_by(Job.id)
                .limit(limit)
            )
        )

    def results_of(self, job_ids: Collection[str]) -> dict[str, str]:
        """Ids of the models that came out of jobs, by job."""
        if not job_ids:
            return {}
        rows = self._session.execute(
            select(Model.source_job_id, Model.id).where(
                Model.source_job_id.in_(job_ids), Model.deleted_at.is_(None)
            )
        ).all()
        return {job_id: model_id for job_id, model_id in rows if job_id is not None}


def unfinished() -> list[str]:
    """The states of jobs that have not ended."""
    return [status.value for status in JobStatus if not status.is_terminal]
