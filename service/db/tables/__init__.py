"""Every table, so that whoever imports this package sees one whole metadata."""

from service.db.tables.api_key import ApiKey, Scope
from service.db.tables.artifact import Artifact
from service.db.tables.dataset import Dataset, DatasetFormat
from service.db.tables.idempotency import IdempotencyRecord
from service.db.tables.job import Job, JobStatus
from service.db.tables.job_cost import JobCost
from service.db.tables.job_event import JobEvent
from service.db.tables.job_metric import JobMetric
from service.db.tables.model import Model
from service.db.tables.tenant import Tenant
from service.db.tables.worker import WorkerRecord

__all__ = [
    "ApiKey",
    "Artifact",
    "Dataset",
    "DatasetFormat",
    "IdempotencyRecord",
    "Job",
    "JobCost",
    "JobEvent",
    "JobMetric",
    "JobStatus",
    "Model",
    "Scope",
    "Tenant",
    "WorkerRecord",
]
