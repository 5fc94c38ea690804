"""Rows and events that tests start from, each valid by itself."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from sanitizer.events import MetricEvent, ProgressEvent, Stage, StageEvent
from sanitizer.report.model import ArtifactKind
from service.db.base import new_id
from service.db.tables import Dataset, DatasetFormat, Job, Model, Tenant
from service.jobs import service as jobs
from service.jobs.schemas import JobRequest
from service.jobs.service import StoredArtifact
from tests.reports import SHA256
from tests.reports import make_report as make_report


def add_tenant(session: Session, name: str = "acme") -> Tenant:
    tenant = Tenant(name=name)
    session.add(tenant)
    session.flush()
    return tenant


def add_model(session: Session, tenant: Tenant, **columns: Any) -> Model:
    model_id = new_id("model")
    model = Model(
        **{
            "id": model_id,
            "tenant_id": tenant.id,
            "name": "suspect",
            "filename": "suspect.pt",
            "bytes": 4,
            "sha256": SHA256,
            "storage_key": f"models/{model_id}",
            "options": {"architecture": "auto", "input_size": None, "mean": None, "std": None},
            **columns,
        }
    )
    session.add(model)
    session.flush()
    return model


def add_dataset(session: Session, tenant: Tenant, **columns: Any) -> Dataset:
    dataset_id = new_id("dataset")
    dataset = Dataset(
        **{
            "id": dataset_id,
            "tenant_id": tenant.id,
            "name": "clean",
            "format": DatasetFormat.NPZ,
            "filename": "clean.npz",
            "bytes": 4,
            "sha256": SHA256,
            "storage_key": f"datasets/{dataset_id}",
            **columns,
        }
    )
    session.add(dataset)
    session.flush()
    return dataset


def add_job(
    session: Session,
    tenant: Tenant | None = None,
    *,
    model: Model | None = None,
    clean: Dataset | None = None,
    max_attempts: int = 3,
    **request: Any,
) -> Job:
    """A queued job, with what it needs where that is not given."""
    tenant = tenant or session.query(Tenant).first() or add_tenant(session)
    model = model or add_model(session, tenant)
    clean = clean or add_dataset(session, tenant)
    wanted = JobRequest.model_validate(
        {"model_id": model.id, "clean_data": {"dataset_id": clean.id}, **request}
    )
    return jobs.create(session, tenant.id, wanted, max_attempts=max_attempts)


def make_stage_event(stage: Stage = Stage.TEACHER) -> StageEvent:
    return StageEvent(stage=stage, message=f"{stage} begins")


def make_progress_event(fraction: float, stage: Stage = Stage.TEACHER) -> ProgressEvent:
    return ProgressEvent(stage=stage, fraction=fraction)


def make_metric_event(
    epoch: int | None = 1, stage: Stage = Stage.TEACHER, **values: float
) -> MetricEvent:
    return MetricEvent(stage=stage, epoch=epoch, values=values or {"loss": 0.5})


def make_artifacts(job_id: str) -> list[StoredArtifact]:
    """A model and a report, as they lie in the store."""
    return [
        StoredArtifact(
            id=(artifact_id := new_id("artifact")),
            name=name,
            kind=kind,
            media_type=media_type,
            bytes=4,
            sha256=SHA256,
            storage_key=f"jobs/{job_id}/{artifact_id}",
        )
        for name, kind, media_type in (
            ("model.pt", ArtifactKind.MODEL, "application/octet-stream"),
            ("report.json", ArtifactKind.REPORT, "application/json"),
        )
    ]


def at(second: int) -> datetime:
    """A moment of a day that is long over."""
    return datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC)
