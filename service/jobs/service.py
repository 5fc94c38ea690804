"""The life of a job: DESIGN section 3. Service and workers share it: no web framework here.

Every function works in its caller's transaction. Its first statement is the conditional UPDATE that
decides a race, so on SQLite too a transaction that begins with one of these waits for its turn. All
writes of a worker are fenced: they hold only while the job is active under the worker's attempt.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from sanitizer.cost.workload import Measured
from sanitizer.errors import Fault
from sanitizer.events import (
    ErrorEvent,
    Event,
    MetricEvent,
    ProgressEvent,
    StageEvent,
    WarningEvent,
)
from sanitizer.report.model import ArtifactKind, Report, readable
from sanitizer.spec import Device
from service.db.base import utc_now
from service.db.tables import Artifact, Job, JobCost, JobStatus, Model
from service.jobs.codes import WorkerCode
from service.jobs.costs import CostRepository
from service.jobs.repository import JobRepository, is_due
from service.jobs.schemas import JobRequest, JobSummary
from service.settings import Settings

STATUS = "status"
"""Type of the events that tell of a change of status; the others are those of a run."""
MAX_DOUBLINGS = 5
"""Of the wait between tries: attempts that a stopping worker gave back count here, too."""
BATCH = 100
"""Jobs that one reconcile round takes up of a kind."""


class NotCancellable(Exception):
    """The job has ended."""

    def __init__(self, job_id: str, status: JobStatus) -> None:
        super().__init__(f"expected a job that has not ended, got {job_id}, which is {status}")
        self.job_id = job_id
        self.status = status


class Gone(Exception):
    """The job was deleted a moment ago."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}")
        self.job_id = job_id


class NotEnded(Exception):
    """The job has not ended."""

    def __init__(self, job_id: str, status: JobStatus) -> None:
        super().__init__(f"expected a job that has ended, got {job_id}, which is {status}")
        self.job_id = job_id
        self.status = status


class LeaseLost(Exception):
    """The job is no longer this worker's; nothing was written."""

    def __init__(self, claim: "Claim") -> None:
        super().__init__(
            f"attempt {claim.attempt} of {claim.job_id} is no longer held by {claim.worker_id}"
        )
        self.claim = claim


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a job.

    Attributes:
        attempt: The fencing number; it grows with each claim of the job.
        method: Name of the method it asks for.
        device: The kind of device it asks for; none: what the worker is set up for.
        devices: How many of them share the run.
        traceparent: W3C trace context of the request that submitted it.
        waited_seconds: Since it was submitted; none unless this is its first attempt.
        checkpoint: What an earlier attempt left in the store, if one did.
    """

    job_id: str
    tenant_id: str
    attempt: int
    worker_id: str
    lease_seconds: float
    method: str = ""
    device: str | None = None
    devices: int = 1
    traceparent: str | None = None
    waited_seconds: float | None = None
    checkpoint: "StoredCheckpoint | None" = None


@dataclass(frozen=True)
class StoredCheckpoint:
    """The state of an unfinished run, as it lies in the store."""

    storage_key: str
    sha256: str


class LeaseState(StrEnum):
    """What a worker learns when it renews its lease."""

    HELD = "held"
    CANCEL_REQUESTED = "cancel_requested"
    LOST = "lost"


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a run that lies in the store."""

    id: str
    name: str
    kind: ArtifactKind
    media_type: str
    bytes: int
    sha256: str
    storage_key: str


# --- What clients do -----------------------------------------------------------------------------


def create(
    session: Session,
    tenant_id: str,
    request: JobRequest,
    *,
    max_attempts: int,
    retry_of_id: str | None = None,
    traceparent: str | None = None,
) -> Job:
    """Stores a job, `queued`, with the first event of its story. To send its message is left."""
    jobs = JobRepository.from_session(session)
    job = Job(
        tenant_id=tenant_id,
        name=request.name,
        status=JobStatus.QUEUED,
        model_id=request.model_id,
        clean_dataset_id=request.clean_data.dataset_id,
        evaluation_dataset_id=(
            None if request.evaluation_data is None else request.evaluation_data.dataset_id
        ),
        request=request.model_dump(mode="json"),
        metadata_=dict(request.metadata),
        max_attempts=max_attempts,
        retry_of_id=retry_of_id,
        device=None if request.device in (None, Device.AUTO) else request.device,
        traceparent=traceparent,
    )
    jobs.add(job)
    _tell(jobs, job, [])
    return job


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancels a queued job at once; asks the worker of a running one to stop it.

    A job that is `cancelling` stays so.

    Raises:
        Gone: There is no such job.
        NotCancellable: The job has ended.
    """
    jobs = JobRepository.from_session(session)
    now = jobs.now()
    status = jobs.touch_if(job_id, updated_at=now)  # locks the row, so that the status stays
    if status is None:
        raise Gone(job_id)
    if not status.is_cancellable and status != JobStatus.CANCELLING:
        raise NotCancellable(job_id, status)
    if status == JobStatus.QUEUED:
        _move(jobs, job_id, {status}, JobStatus.CANCELLED, finished_at=now)
    elif status == JobStatus.RUNNING:
        _move(jobs, job_id, {status}, JobStatus.CANCELLING)
    return session.get_one(Job, job_id, populate_existing=True)


def delete(session: Session, job_id: str) -> list[str]:
    """Deletes a job that has ended, with all that hangs on it but the models that it made.

    Returns:
        Keys of files that can go once that is committed.

    Raises:
        Gone: There is no such job.
        NotEnded: It has not.
    """
    jobs = JobRepository.from_session(session)
    status = jobs.touch_if(job_id, updated_at=jobs.now())  # locks the row
    if status is None:
        raise Gone(job_id)
    if not status.is_terminal:
        raise NotEnded(job_id, status)
    return jobs.delete(job_id)


def waiting_reasons(session: Session, rows: Sequence[Job], settings: Settings) -> dict[str, str]:
    """Why jobs do not run yet, for people, by id; only the queued ones have a reason."""
    queued = [job for job in rows if job.status == JobStatus.QUEUED]
    if not queued:
        return {}
    jobs = JobRepository.from_session(session)
    silence = settings.lease_seconds
    now = jobs.now()
    present = jobs.worker_devices(since=now - timedelta(seconds=silence))
    first = {
        device: jobs.first_queued(device, now=now) for device in {job.device for job in queued}
    }
    return {job.id: _waits_for(job, first[job.device], present, silence, now) for job in queued}


def _waits_for(
    job: Job, first: str | None, present: Collection[str], silence: float, now: datetime
) -> str:
    if not present:
        return (
            f"No worker has reported in the last {silence:g} s; the job runs as soon as one starts."
        )
    if job.device == Device.CUDA and Device.CUDA not in present:
        return (
            "It asks for the device cuda, and no worker that has one has reported in the last "
            f"{silence:g} s. Cancel it and submit it without `device` to run it on what there is."
        )
    if job.not_before is not None and job.not_before > now:
        return (
            f"Attempt {job.attempt} ended by a fault of the machine; the next one begins after "
            f"{job.not_before.astimezone(UTC):%H:%M:%S} UTC."
        )
    if first is not None and first < job.id:
        return "Other jobs are ahead of it."  # not how many: they may be other tenants'
    if job.attempt:
        return f"Attempt {job.attempt} was cut short; a worker takes it up again."
    return "It is the next one: it runs as soon as a worker that takes such jobs has a free slot."


# --- What workers do -----------------------------------------------------------------------------


def wish(session: Session, job_id: str) -> tuple[str | None, int] | None:
    """The device that a job asks for, and how many; None: it could not be claimed."""
    jobs = JobRepository.from_session(session)
    return jobs.wish_of(job_id, now=jobs.now())


def claim(session: Session, job_id: str, worker_id: str, lease_seconds: float) -> Claim | None:
    """Takes a queued job for a worker; None: it does not wait any more, or for its time."""
    jobs = JobRepository.from_session(session)
    now = jobs.now()
    job = _move(
        jobs,
        job_id,
        {JobStatus.QUEUED},
        JobStatus.RUNNING,
        conditions=(is_due(now),),
        not_before=None,
        attempt=Job.attempt + 1,
        worker_id=worker_id,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        started_at=func.coalesce(Job.started_at, now),
    )
    if job is None:
        return None
    return Claim(
        job.id,
        job.tenant_id,
        job.attempt,
        worker_id,
        lease_seconds,
        method=str(job.request["method"]["name"]),
        device=job.device,
        devices=int(job.request.get("devices", 1)),
        traceparent=job.traceparent,
        waited_seconds=(now - job.created_at).total_seconds() if job.attempt == 1 else None,
        checkpoint=_checkpoint_of(job),
    )


def renew(session: Session, held: Claim) -> LeaseState:
    """Prolongs a lease, and tells whether the job is still the worker's and still wanted."""
    jobs = JobRepository.from_session(session)
    status = jobs.touch_if(
        held.job_id,
        *_held(held),
        lease_expires_at=jobs.now() + timedelta(seconds=held.lease_seconds),
    )
    return _lease_state(status)


def look(session: Session, held: Claim) -> LeaseState:
    """As `renew`, but only looks: for a worker that wants to notice a cancel request soon."""
    job = session.query(Job.status).where(Job.id == held.job_id, *_held(held)).one_or_none()
    return _lease_state(None if job is None else JobStatus(job.status))


def append_events(session: Session, held: Claim, events: Sequence[Event]) -> LeaseState:
    """Adds events of a run to its story; figures, stage and progress to their places too.

    The last event of a run does not belong here: `succeed` and `fail` tell of it.

    Raises:
        LeaseLost: The job is no longer the worker's.
    """
    jobs = JobRepository.from_session(session)
    values: dict[str, Any] = {"updated_at": jobs.now()}
    for event in events:
        if isinstance(event, StageEvent | ProgressEvent):
            values["stage"] = event.stage
        if isinstance(event, ProgressEvent):
            values["progress"] = event.fraction
    status = jobs.touch_if(held.job_id, *_held(held), **values)
    if status is None:
        raise LeaseLost(held)
    jobs.add_events(held.job_id, held.attempt, [_entry(event) for event in events])
    jobs.add_metrics(
        [
            {
                "job_id": held.job_id,
                "stage": event.stage,
                "epoch": event.epoch or 0,
                "name": storable(name)[:80],
                "value": value,
                "at": event.at,
            }
            for event in events
            if isinstance(event, MetricEvent)
            for name, value in event.values.items()
            if math.isfinite(value)
        ]
    )
    return _lease_state(status)


def succeed(
    session: Session, held: Claim, report: Report, artifacts: Sequence[StoredArtifact]
) -> Job:
    """The run has ended well: its files become rows, and the sanitized model becomes a model.

    Raises:
        LeaseLost: The job is no longer the worker's.
        ValueError: Not exactly one of the files is a model.
    """
    results = [artifact for artifact in artifacts if artifact.kind == ArtifactKind.MODEL]
    if len(results) != 1:
        raise ValueError(f"expected one model among the artifacts, got {len(results)}")
    jobs = JobRepository.from_session(session)
    job = _move(
        jobs,
        held.job_id,
        {JobStatus.RUNNING, JobStatus.CANCELLING},
        JobStatus.SUCCEEDED,
        fence=held,
        tell=False,
        verdict=report.decision.verdict,
        summary=storable(JobSummary.of(report).model_dump(mode="json")),
        progress=1.0,
        finished_at=jobs.now(),
        **_UNHELD,
    )
    if job is None:
        raise LeaseLost(held)
    for artifact in artifacts:
        session.add(
            Artifact(
                id=artifact.id,
                job_id=job.id,
                name=artifact.name,
                kind=artifact.kind,
                media_type=artifact.media_type,
                bytes=artifact.bytes,
                sha256=artifact.sha256,
                storage_key=artifact.storage_key,
            )
        )
    result_id = _add_result(session, job, results[0], report)
    _keep_cost(session, job, report)
    told = {
        "artifacts": [
            {
                "id": artifact.id,
                "name": artifact.name,
                "kind": artifact.kind,
                "media_type": artifact.media_type,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
            }
            for artifact in artifacts
        ]
    }
    _tell(
        jobs,
        job,
        [{"verdict": report.decision.verdict, "result_model_id": result_id}],
        before=[("result", storable(told), utc_now())],
    )
    return job


def is_kept(session: Session, artifacts: Sequence[StoredArtifact]) -> bool:
    """Whether a result was taken already: rows name these very files, not another attempt's.

    Since then its job may have been deleted, and with it all but the model, or its model.
    """
    ids = [artifact.id for artifact in artifacts]
    if session.query(Artifact.id).where(Artifact.id.in_(ids)).first() is not None:
        return True
    keys = [artifact.storage_key for artifact in artifacts if artifact.kind == ArtifactKind.MODEL]
    return session.query(Model.id).where(Model.storage_key.in_(keys)).first() is not None


def fail(session: Session, held: Claim, error: ErrorEvent, *, retry_seconds: float = 0) -> Job:
    """The run has ended badly.

    Input at fault: `failed`. Machine at fault: `queued` again while tries are left, else `failed`;
    a job that was asked to stop is then `cancelled`, since nobody wants another try.

    Args:
        session: Of the caller's transaction.
        held: The worker's hold on the job.
        error: What went wrong.
        retry_seconds: Before the second attempt; twice as long after each further one.

    Raises:
        LeaseLost: The job is no longer the worker's.
    """
    jobs = JobRepository.from_session(session)
    reason = storable({"code": error.code[:60], "message": error.message, "data": error.data})
    if error.fault == Fault.MACHINE:
        moved = _try_again(jobs, held, reason, retry_seconds)
        if moved is not None:
            return moved
    failed = _move(
        jobs,
        held.job_id,
        {JobStatus.RUNNING, JobStatus.CANCELLING},
        JobStatus.FAILED,
        fence=held,
        before=[_entry(error)],
        error_code=reason["code"],
        error_message=reason["message"],
        error_data=reason["data"],
        finished_at=jobs.now(),
        **_UNHELD,
    )
    if failed is None:
        raise LeaseLost(held)
    return failed


def finish_cancelled(session: Session, held: Claim) -> Job:
    """The run was stopped because somebody asked for it.

    Raises:
        LeaseLost: The job is no longer the worker's, or nobody asked.
    """
    jobs = JobRepository.from_session(session)
    job = _move(
        jobs,
        held.job_id,
        {JobStatus.CANCELLING},
        JobStatus.CANCELLED,
        fence=held,
        finished_at=jobs.now(),
        **_UNHELD,
    )
    if job is None:
        raise LeaseLost(held)
    return job


def release(session: Session, held: Claim, reason: str) -> Job:
    """The worker gives a job back that it cannot finish, because it is being stopped.

    The job is `queued` again, and may be tried as often as before: nothing was at fault. One that
    was asked to stop is `cancelled`.

    Raises:
        LeaseLost: The job is no longer the worker's.
    """
    jobs = JobRepository.from_session(session)
    job = _move(
        jobs,
        held.job_id,
        {JobStatus.RUNNING},
        JobStatus.QUEUED,
        fence=held,
        data={"reason": reason},
        max_attempts=Job.max_attempts + 1,
        sent_at=None,
        **_UNHELD,
    )
    return job or finish_cancelled(session, held)


def keep_checkpoint(session: Session, held: Claim, checkpoint: StoredCheckpoint) -> None:
    """Notes where the last checkpoint of the run lies; what lay there before can go.

    Raises:
        LeaseLost: The job is no longer the worker's.
    """
    status = JobRepository.from_session(session).touch_if(
        held.job_id,
        *_held(held),
        checkpoint_key=checkpoint.storage_key,
        checkpoint_sha256=checkpoint.sha256,
    )
    if status is None:
        raise LeaseLost(held)


def drop_checkpoint(session: Session, job_id: str) -> str | None:
    """Forgets the checkpoint of a job that is over; gives its key in the store, if there is one."""
    jobs = JobRepository.from_session(session)
    if not is_over(session, job_id):
        return None
    job = jobs.get(job_id)
    if job is None or job.checkpoint_key is None:
        return None
    key = job.checkpoint_key
    jobs.touch_if(job_id, Job.checkpoint_key == key, checkpoint_key=None, checkpoint_sha256=None)
    return key


def _checkpoint_of(job: Job) -> StoredCheckpoint | None:
    if job.checkpoint_key is None or job.checkpoint_sha256 is None:
        return None
    return StoredCheckpoint(job.checkpoint_key, job.checkpoint_sha256)


def is_over(session: Session, job_id: str) -> bool:
    """Whether a job has ended, or is not there any more."""
    status = JobRepository.from_session(session).status_of(job_id)
    return status is None or status.is_terminal


# --- What reconcile does -------------------------------------------------------------------------


def mark_sent(session: Session, job_id: str) -> None:
    """Notes that the job's message went to the broker."""
    jobs = JobRepository.from_session(session)
    now = jobs.now()
    jobs.mark_sent(job_id, unless_since=now, now=now)


def jobs_to_resend(
    session: Session,
    device: str | None,
    resend_seconds: float,
    *,
    messages: int = 0,
) -> list[str]:
    """Jobs that wait for a device, and whose message is lost or never went out.

    Each goes to one caller alone. They are marked as sent: call `mark_unsent` if the broker does
    not take one.

    Args:
        session: Of a transaction that is committed before the messages go out.
        device: None: jobs that take any.
        resend_seconds: A message this old counts as lost.
        messages: How many lie in the queue of the device. While they are as many as the jobs, none
            of them can be lost, only late: without workers the queue would otherwise grow with
            every round.
    """
    jobs = JobRepository.from_session(session)
    now = jobs.now()
    none_lost = messages >= jobs.count_due(device, now=now)
    since = None if none_lost else now - timedelta(seconds=resend_seconds)
    found = jobs.queued_unsent(device, since=since, now=now, limit=BATCH)
    return [job_id for job_id in found if jobs.mark_sent(job_id, unless_since=since, now=now)]


def mark_unsent(session: Session, job_id: str) -> None:
    """The job has no message any more: the broker did not take it, or its worker cannot."""
    jobs = JobRepository.from_session(session)
    jobs.touch_if(job_id, Job.status == JobStatus.QUEUED, sent_at=None)


def take_back_expired(session: Session, limit: int = BATCH) -> list[Job]:
    """Takes jobs back whose worker has been silent for longer than its lease, at most `limit`.

    `running` becomes `queued` while tries are left, else `failed` (`worker_lost`); `cancelling`
    becomes `cancelled`. A job whose row is locked is left out.
    """
    jobs = JobRepository.from_session(session)
    now = jobs.now()
    taken = []
    for job_id, attempt in jobs.leases_ended(before=now, limit=limit):
        lapsed = (Job.attempt == attempt, Job.lease_expires_at < now)
        job = (
            _move(
                jobs,
                job_id,
                {JobStatus.CANCELLING},
                JobStatus.CANCELLED,
                conditions=lapsed,
                finished_at=now,
                **_UNHELD,
            )
            or _move(
                jobs,
                job_id,
                {JobStatus.RUNNING},
                JobStatus.QUEUED,
                conditions=(*lapsed, Job.attempt < Job.max_attempts),
                data={"reason": "The worker fell silent; another one takes the job up."},
                sent_at=None,
                **_UNHELD,
            )
            or _move(
                jobs,
                job_id,
                {JobStatus.RUNNING},
                JobStatus.FAILED,
                conditions=lapsed,
                error_code=WorkerCode.WORKER_LOST.value,
                error_message=(
                    f"The worker fell silent in attempt {attempt}, which was the last one. Ask the "
                    "operator what stops the workers (memory, most often), then retry the job."
                ),
                error_data={"attempts": attempt},
                finished_at=now,
                **_UNHELD,
            )
        )
        if job is not None:
            taken.append(job)
    return taken


# --- Parts ---------------------------------------------------------------------------------------

_UNHELD: dict[str, Any] = {"worker_id": None, "lease_expires_at": None}
"""What a job that no worker holds has in these columns."""


def _held(held: Claim) -> tuple[ColumnElement[bool], ...]:
    """The fence: the job is active, under this attempt."""
    return (
        Job.attempt == held.attempt,
        Job.status.in_([status for status in JobStatus if status.is_active]),
    )


def _lease_state(status: JobStatus | None) -> LeaseState:
    if status is None:
        return LeaseState.LOST
    if status == JobStatus.CANCELLING:
        return LeaseState.CANCEL_REQUESTED
    return LeaseState.HELD


def _move(
    jobs: JobRepository,
    job_id: str,
    sources: set[JobStatus],
    target: JobStatus,
    *,
    fence: Claim | None = None,
    conditions: Sequence[ColumnElement[bool]] = (),
    before: Sequence[tuple[str, dict[str, Any], datetime]] = (),
    data: Mapping[str, Any] | None = None,
    tell: bool = True,
    **values: Any,
) -> Job | None:
    """Changes the status in one conditional UPDATE and tells of it in the job's story.

    None: the job was in none of the `sources`, or not held by `fence`; nothing was written.

    Raises:
        ValueError: The graph of `JobStatus` has no such edge: a mistake of the caller.
    """
    for source in sources:
        if target not in source.next:
            raise ValueError(f"a job does not go from {source} to {target}")
    job = jobs.update_if(
        job_id,
        Job.status.in_(sources),
        *(() if fence is None else _held(fence)),
        *conditions,
        status=target,
        **values,
    )
    if job is not None and tell:
        _tell(jobs, job, [] if data is None else [data], before=before)
    return job


def _tell(
    jobs: JobRepository,
    job: Job,
    data: Sequence[Mapping[str, Any]],
    *,
    before: Sequence[tuple[str, dict[str, Any], datetime]] = (),
) -> None:
    told: dict[str, Any] = {"status": job.status}
    if job.error_code is not None:
        told["error"] = {"code": job.error_code, "message": job.error_message}
    for more in data:
        told.update(more)
    jobs.add_events(job.id, job.attempt, [*before, (STATUS, storable(told), utc_now())])


def _try_again(
    jobs: JobRepository, held: Claim, reason: Mapping[str, Any], retry_seconds: float
) -> Job | None:
    """After a fault of the machine; None: no tries are left."""
    warning = WarningEvent(
        code=reason["code"], message=f"Attempt {held.attempt} failed: {reason['message']}"
    )
    now = jobs.now()
    wait = retry_seconds * 2 ** min(held.attempt - 1, MAX_DOUBLINGS)
    return _move(
        jobs,
        held.job_id,
        {JobStatus.CANCELLING},
        JobStatus.CANCELLED,
        fence=held,
        before=[_entry(warning)],
        finished_at=now,
        **_UNHELD,
    ) or _move(
        jobs,
        held.job_id,
        {JobStatus.RUNNING},
        JobStatus.QUEUED,
        fence=held,
        conditions=(Job.attempt < Job.max_attempts,),
        before=[_entry(warning)],
        data={"reason": "The machine was at fault; the job is tried again."},
        sent_at=None,
        not_before=now + timedelta(seconds=wait) if wait else None,
        **_UNHELD,
    )


def _add_result(session: Session, job: Job, artifact: StoredArtifact, report: Report) -> str:
    source = session.get_one(Model, job.model_id)
    result = Model(
        tenant_id=job.tenant_id,
        name=f"{source.name[:180]} (sanitized)",
        filename=artifact.name,
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        storage_key=artifact.storage_key,
        options={
            **source.options,
            "architecture": storable(report.model.architecture),
            "input_size": list(report.model.input_size),
        },
        metadata_=dict(source.metadata_),
        source_job_id=job.id,
    )
    session.add(result)
    session.flush()
    return result.id


def _keep_cost(session: Session, job: Job, report: Report) -> None:
    """Notes what the job took, for the estimates of later ones."""
    measured = Measured.of_report(report)
    if measured is None:
        return
    CostRepository.from_session(session).add(
        JobCost(
            job_id=job.id,
            tenant_id=job.tenant_id,
            device=measured.workload.device,
            architecture=storable(measured.workload.architecture)[:80],
            model_sha256=session.get_one(Model, job.model_id).sha256,
            measured=storable(measured.model_dump(mode="json")),
        )
    )


def _entry(event: Event) -> tuple[str, dict[str, Any], datetime]:
    data = event.model_dump(mode="json", exclude={"type", "at"})
    return event.type, storable(data), event.at


def storable(value: Any) -> Any:
    """The value without what PostgreSQL stores in no text or JSON: NUL, lone surrogates, NaN."""
    if isinstance(value, str):
        return readable(value.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value
