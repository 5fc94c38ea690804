"""Rows of jobs as clients see them."""

from typing import Any

from sanitizer.events import Stage
from sanitizer.report.model import ArtifactKind, Verdict
from service.db.tables import Artifact, Job, JobEvent, JobMetric, JobStatus
from service.jobs.repository import RequestHead
from service.jobs.schemas import (
    ArtifactLinks,
    ArtifactOut,
    JobDetail,
    JobError,
    JobEventOut,
    JobLinks,
    JobMetricOut,
    JobOut,
    JobSummary,
)


def job_out(
    job: Job, head: RequestHead, *, waiting_reason: str | None, result_model_id: str | None
) -> JobOut:
    """A job, as lists show it; its request need not be loaded."""
    return JobOut(**_job_fields(job, head, waiting_reason, result_model_id))


def job_detail(job: Job, *, waiting_reason: str | None, result_model_id: str | None) -> JobDetail:
    """A job with its request."""
    fields = _job_fields(job, RequestHead.of(job.request), waiting_reason, result_model_id)
    return JobDetail(**fields, request=job.request)


def _job_fields(
    job: Job, head: RequestHead, waiting_reason: str | None, result_model_id: str | None
) -> dict[str, Any]:
    base = f"/v1/jobs/{job.id}"
    return {
        "object": "job",
        "id": job.id,
        "name": job.name,
        "status": JobStatus(job.status),
        "verdict": None if job.verdict is None else Verdict(job.verdict),
        "stage": None if job.stage is None else Stage(job.stage),
        "progress": job.progress,
        "waiting_reason": waiting_reason,
        "error": _error(job),
        "summary": None if job.summary is None else JobSummary.model_validate(job.summary),
        "model_id": job.model_id,
        "clean_data": head.clean_data,
        "evaluation_data": head.evaluation_data,
        "method": head.method,
        "seed": head.seed,
        "result_model_id": result_model_id,
        "retry_of_id": job.retry_of_id,
        "attempt": job.attempt,
        "metadata": job.metadata_,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "updated_at": job.updated_at,
        "links": JobLinks(
            self_=base,
            cancel=f"{base}/cancel",
            events=f"{base}/events",
            metrics=f"{base}/metrics",
            artifacts=f"{base}/artifacts",
            report=f"{base}/report",
        ),
    }


def _error(job: Job) -> JobError | None:
    if job.error_code is None:
        return None
    return JobError(code=job.error_code, message=job.error_message or "", data=job.error_data or {})


def event_out(event: JobEvent) -> JobEventOut:
    """One event."""
    return JobEventOut.model_validate(
        {
            "object": "job.event",
            "job_id": event.job_id,
            "sequence": event.sequence,
            "type": event.type,
            "attempt": event.attempt,
            "at": event.at,
            "data": event.data,
        }
    )


def metric_out(metric: JobMetric) -> JobMetricOut:
    """One figure."""
    return JobMetricOut(
        object="job.metric",
        stage=Stage(metric.stage),
        epoch=metric.epoch or None,
        name=metric.name,
        value=metric.value,
        at=metric.at,
    )


def artifact_out(artifact: Artifact) -> ArtifactOut:
    """One file."""
    return ArtifactOut(
        object="artifact",
        id=artifact.id,
        job_id=artifact.job_id,
        name=artifact.name,
        kind=ArtifactKind(artifact.kind),
        media_type=artifact.media_type,
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        created_at=artifact.created_at,
        links=ArtifactLinks(file=f"/v1/jobs/{artifact.job_id}/artifacts/{artifact.id}/file"),
    )
