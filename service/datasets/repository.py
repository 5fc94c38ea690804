"""Queries on data sets."""

from sqlalchemy import or_, select

from service.db.repository import Repository
from service.db.tables import Dataset, Job
from service.models.repository import unfinished


class DatasetRepository(Repository):
    """Data sets that are not deleted, by tenant."""

    def add(self, dataset: Dataset) -> None:
        """Inserts a row."""
        self._session.add(dataset)
        self._session.flush()

    def get(self, tenant_id: str, dataset_id: str) -> Dataset | None:
        """A data set of the tenant."""
        return self._session.scalar(
            select(Dataset).where(
                Dataset.tenant_id == tenant_id,
                Dataset.id == dataset_id,
                Dataset.deleted_at.is_(None),
            )
        )

    def page(self, tenant_id: str, *, after: str | None, limit: int) -> list[Dataset]:
        """Data sets of the tenant, newest first, from below the id `after`."""
        query = select(Dataset).where(Dataset.tenant_id == tenant_id, Dataset.deleted_at.is_(None))
        if after is not None:
            query = query.where(Dataset.id < after)
        return list(self._session.scalars(query.order_by(Dataset.id.desc()).limit(limit)))

    def unfinished_jobs(self, dataset_id: str, limit: int = 10) -> list[str]:
        """Ids of jobs that need the data set and have not ended."""
        return list(
            self._session.scalars(
                select(Job.id)
                .where(
                    or_(
                        Job.clean_dataset_id == dataset_id, Job.evaluation_dataset_id == dataset_id
                    ),
                    Job.status.in_(unfinished()),
                )
                .order_by(Job.id)
                .limit(limit)
            )
        )
