"""Jobs over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AwareDatetime, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from sanitizer.report.model import ArtifactKind, Report, Verdict
from service import errors, outbox, problems
from service.db.session import transaction
from service.db.tables import Artifact, Job, JobStatus
from service.dependencies import (
    KeyedRoute,
    LongLimit,
    Paging,
    Reader,
    ReadSession,
    ServicesDep,
    Writer,
    WriteSession,
)
from service.downloads import file_response, whole_file
from service.fields import PlainText, no_nul_in_id
from service.idempotency import Answer, OnceDep, fingerprint
from service.jobs import service as jobs
from service.jobs import stream, submission, views
from service.jobs.estimating import estimate_job
from service.jobs.negotiation import EVENT_STREAM, HTML, JSON, preferred
from service.jobs.repository import JobFilter, JobRepository
from service.jobs.schemas import (
    ArtifactList,
    JobCreate,
    JobDetail,
    JobEventList,
    JobList,
    JobMetricList,
    JobRequest,
    JobValidation,
)
from service.keys.service import Caller
from service.models.repository import ModelRepository
from service.openapi import CREATE_ERRORS, CREATED, FILE_REQUEST, file_responses
from service.pagination import coerce_limit, cut, decode_cursor, encode_cursor
from service.services import Services

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=KeyedRoute)

JobId = Annotated[str, no_nul_in_id, Path(description="Id of a job, `job_...`.")]
ArtifactId = Annotated[str, no_nul_in_id, Path(description="Id of a file, `artifact_...`.")]

MAX_EVENTS = 1000
MAX_METRICS = 1000
REPORT_PAGE_HEADERS = {
    # The page is one file with its pictures in it, and nothing of it may run.
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "sandbox",
    "X-Content-Type-Options": "nosniff",
}


# --- Submitting ----------------------------------------------------------------------------------

SUBMIT_ERRORS = (
    *CREATE_ERRORS,
    errors.UnknownIds,
    errors.ProbeOutsideImage,
    errors.TooManyJobs,
)


@router.post(
    "",
    operation_id="create_job",
    summary="Sanitize a model",
    status_code=202,
    response_model=JobDetail,
    responses=problems.responses(
        *SUBMIT_ERRORS,
        also={
            200: {
                "model": JobValidation,
                "description": "`validate_only`: what was checked, and what it would take.",
            },
            202: CREATED,
        },
    ),
)
def create(
    body: JobCreate,
    request: Request,
    services: ServicesDep,
    caller: Writer,
    once: OnceDep,
    session: WriteSession,
) -> JSONResponse:
    """Queues a job and answers at once; all that needs no look into a file is checked before.

    If the broker is down the job is stored all the same and runs once it is back. With
    `validate_only` the checks are made, the job's cost is estimated and nothing is stored.
    """
    job_request = body.as_request()
    if body.validate_only:
        checks = submission.check(
            session,
            caller.tenant_id,
            job_request,
            max_queued=services.settings.max_queued_jobs,
        )
        validation = JobValidation(
            object="job.validation",
            checks=checks,
            estimate=estimate_job(session, caller.tenant_id, job_request, services.settings),
            request=job_request,
        )
        return Answer(200, validation).response()

    def work() -> Answer:
        return _submit(session, services, caller, job_request, retry_of=None)

    return once.run(session, fingerprint(request, body.model_dump(mode="json")), work)


@router.post(
    "/{job_id}/retry",
    operation_id="retry_job",
    summary="Retry a job",
    status_code=202,
    response_model=JobDetail,
    responses=problems.responses(
        *SUBMIT_ERRORS,
        errors.JobNotFound,
        errors.JobNotRetryable,
        errors.RequestOutdated,
        also={202: CREATED},
    ),
)
def retry(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    caller: Writer,
    once: OnceDep,
    session: WriteSession,
) -> JSONResponse:
    """Queues a new job with the request of one that has failed or been cancelled."""

    def work() -> Answer:
        job = _job(session, caller, job_id)
        if not JobRepository.from_session(session).hold(job.id):
            raise errors.JobNotFound(job.id)
        status = JobStatus(job.status)
        if status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise errors.JobNotRetryable(job.id, status)
        return _submit(session, services, caller, _request_of(job), retry_of=job)

    return once.run(session, fingerprint(request, None), work)


def _request_of(job: Job) -> JobRequest:
    try:
        return JobRequest.model_validate(job.request)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise errors.RequestOutdated(job.id, faults) from error


def _submit(
    session: Session, services: Services, caller: Caller, body: JobRequest, *, retry_of: Job | None
) -> Answer:
    settings = services.settings
    submission.check(session, caller.tenant_id, body, max_queued=settings.max_queued_jobs)
    job = jobs.create(
        session,
        caller.tenant_id,
        body,
        max_attempts=settings.max_attempts,
        retry_of_id=None if retry_of is None else retry_of.id,
        traceparent=services.tracing.traceparent(),
    )
    outbox.send_job(session, job.id, job.device)
    out = _detail(session, services, job)
    return Answer(202, out, {"Location": out.links.self_})


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    status_code=202,
    response_model=JobDetail,
    responses=problems.responses(
        errors.JobNotFound,
        errors.JobNotCancellable,
        also={200: {"model": JobDetail, "description": "The job was waiting and is cancelled."}},
    ),
)
def cancel(
    job_id: JobId,
    response: Response,
    services: ServicesDep,
    caller: Writer,
    session: WriteSession,
) -> JobDetail:
    """Cancels a job.

    One that waits is cancelled at once (200). One that runs is asked to stop and is `cancelling`
    until its worker has stopped it (202); asking again changes nothing. One that has ended answers
    409.
    """
    job = _job(session, caller, job_id)
    with _refusals():
        job = jobs.request_cancel(session, job.id)
    outbox.wake(session, job.id)
    response.status_code = 200 if JobStatus(job.status).is_terminal else 202
    return _detail(session, services, job)


@router.delete(
    "/{job_id}",
    operation_id="delete_job",
    summary="Delete a job",
    status_code=204,
    responses=problems.responses(errors.JobNotFound, errors.JobNotEnded),
)
def delete(job_id: JobId, caller: Writer, session: WriteSession) -> None:
    """Removes a job that has ended: its request, events, figures, report and pictures, for good.

    The sanitized model stays; it is a model like any other. Estimates of later jobs no longer rest
    on what this one took.
    """
    job = _outline(session, caller, job_id)
    with _refusals():
        keys = jobs.delete(session, job.id)
    for key in keys:
        outbox.remove_file(session, key)


# --- Looking -------------------------------------------------------------------------------------


@router.get("", operation_id="list_jobs", summary="List jobs")
def list_page(
    caller: Reader,
    services: ServicesDep,
    session: ReadSession,
    paging: Paging,
    status: Annotated[
        list[JobStatus] | None, Query(description="Only these; may be given several times.")
    ] = None,
    verdict: Annotated[
        list[Verdict] | None, Query(description="Only these; may be given several times.")
    ] = None,
    model_id: Annotated[
        PlainText | None, Query(max_length=40, description="Only jobs over this model.")
    ] = None,
    created_after: Annotated[
        AwareDatetime | None, Query(description="Only jobs made after this time.")
    ] = None,
    created_before: Annotated[
        AwareDatetime | None, Query(description="Only jobs made before this time.")
    ] = None,
    metadata: Annotated[
        list[PlainText] | None,
        Query(
            max_length=16,
            description="Only jobs with this metadata, as `key:value`, or `key` for any value; may "
            "be given several times.",
            examples=[["team:vision"]],
        ),
    ] = None,
) -> JobList:
    """Your jobs, newest first, without their requests."""
    wanted = JobFilter(
        statuses=status,
        verdicts=verdict,
        model_id=model_id,
        created_after=created_after,
        created_before=created_before,
        metadata=_metadata_filter(metadata or []),
    )
    repository = JobRepository.from_session(session)
    rows = repository.page(caller.tenant_id, wanted, after=paging.after, limit=paging.limit + 1)
    page, more, cursor = cut(rows, paging.limit)
    job_ids = [job.id for job in page]
    heads = repository.request_heads(job_ids)
    reasons = jobs.waiting_reasons(session, page, services.settings)
    results = ModelRepository.from_session(session).results_of(job_ids)
    data = [
        views.job_out(
            job,
            heads[job.id],
            waiting_reason=reasons.get(job.id),
            result_model_id=results.get(job.id),
        )
        for job in page
        if job.id in heads  # else it was deleted a moment ago
    ]
    return JobList(object="list", data=data, has_more=more, next_cursor=cursor)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="Get a job",
    responses=problems.responses(errors.JobNotFound),
)
def get(job_id: JobId, caller: Reader, services: ServicesDep, session: ReadSession) -> JobDetail:
    """How a job stands. A failed run is no HTTP error: `status` and `error` tell of it."""
    return _detail(session, services, _job(session, caller, job_id))


@router.get(
    "/{job_id}/events",
    operation_id="list_job_events",
    summary="Follow a job",
    response_model=JobEventList,
    responses=problems.responses(
        errors.JobNotFound,
        errors.NotAcceptable,
        also={
            200: {
                "description": "A page of events; or, with `Accept: text/event-stream`, all of "
                "them as they come, until the job has ended.",
                "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
            }
        },
    ),
)
async def events(
    job_id: JobId,
    request: Request,
    caller: Reader,
    services: ServicesDep,
    limit: LongLimit = 100,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Only events behind this sequence number.")
    ] = 0,
    last_event_id: Annotated[
        str | None,
        Header(
            max_length=20,
            description="Of a stream that broke: it goes on behind this sequence number.",
        ),
    ] = None,
) -> Response:
    """The story of a job, oldest first: as pages, or as server-sent events.

    With `Accept: text/event-stream` the answer is a stream: each event has its `type` as event
    name, its `sequence` as id and the same object as data. It ends after the last event of a job
    that has ended; a client that comes back with `Last-Event-ID` misses nothing.
    """
    wanted = preferred(request.headers.get("accept", ""), JSON, EVENT_STREAM)
    start = after if last_event_id is None else _sequence(last_event_id)

    def read() -> JobEventList:
        with transaction(services.sessions) as session:
            _outline(session, caller, job_id)
            size = coerce_limit(limit, MAX_EVENTS)
            rows = JobRepository.from_session(session).events(job_id, after=start, limit=size + 1)
        page = [views.event_out(row) for row in rows[:size]]
        more = len(rows) > size
        return JobEventList(
            object="list",
            data=page,
            has_more=more,
            next_cursor=str(page[-1].sequence) if more else None,
        )

    if wanted == EVENT_STREAM:

        def check() -> None:
            with transaction(services.sessions) as session:
                _outline(session, caller, job_id)

        await run_in_threadpool(check)
        return stream.response(services, caller, job_id, after=start)
    page = await run_in_threadpool(read)
    return JSONResponse(page.model_dump(mode="json"))


@router.get(
    "/{job_id}/metrics",
    operation_id="list_job_metrics",
    summary="List figures of a job",
    responses=problems.responses(errors.JobNotFound),
)
def metrics(
    job_id: JobId,
    caller: Reader,
    session: ReadSession,
    limit: LongLimit = MAX_METRICS,
    after: Annotated[
        str | None, Query(max_length=200, description="The `next_cursor` of the page before.")
    ] = None,
    name: Annotated[
        PlainText | None, Query(max_length=80, description="Only figures of this name.")
    ] = None,
) -> JobMetricList:
    """The figures of a job by stage and epoch, in the order they came.

    A training that begins again, more gently or after an interruption, tells its epochs again:
    figures that differ come once more behind all others, and the page before has them no longer.
    """
    job = _outline(session, caller, job_id)
    size = coerce_limit(limit, MAX_METRICS)
    rows = JobRepository.from_session(session).metrics(
        job.id, name=name, after=_row_number(after), limit=size + 1
    )
    more = len(rows) > size
    return JobMetricList(
        object="list",
        data=[views.metric_out(row) for row in rows[:size]],
        has_more=more,
        next_cursor=encode_cursor(str(rows[size - 1].id)) if more else None,
    )


# --- What it left --------------------------------------------------------------------------------


@router.get(
    "/{job_id}/artifacts",
    operation_id="list_job_artifacts",
    summary="List files of a job",
    responses=problems.responses(errors.JobNotFound),
)
def artifacts(job_id: JobId, caller: Reader, session: ReadSession) -> ArtifactList:
    """The files that a job left: model, report, plots. None before it has succeeded."""
    job = _outline(session, caller, job_id)
    rows = JobRepository.from_session(session).artifacts(job.id)
    return ArtifactList(
        object="list",
        data=[views.artifact_out(row) for row in rows],
        has_more=False,
        next_cursor=None,
    )


@router.get(
    "/{job_id}/artifacts/{artifact_id}/file",
    operation_id="download_job_artifact",
    summary="Download a file of a job",
    response_class=Response,
    responses=problems.responses(
        errors.JobNotFound,
        errors.ArtifactNotFound,
        errors.FileGone,
        errors.RangeNotSatisfiable,
        also=file_responses("The file, of the artifact's `media_type`.", any_type=True),
    ),
    openapi_extra=FILE_REQUEST,
)
async def download(
    job_id: JobId,
    artifact_id: ArtifactId,
    request: Request,
    caller: Reader,
    services: ServicesDep,
) -> Response:
    """A file that a job left. `Range` resumes a broken download, `If-None-Match` saves one."""

    def find() -> Artifact:
        with transaction(services.sessions) as session:
            _outline(session, caller, job_id)
            rows = JobRepository.from_session(session).artifacts(job_id)
        for row in rows:
            if row.id == artifact_id:
                return row
        raise errors.ArtifactNotFound(artifact_id)

    artifact = await run_in_threadpool(find)
    return await file_response(
        request,
        services.store,
        key=artifact.storage_key,
        sha256=artifact.sha256,
        filename=artifact.name,
        media_type=artifact.media_type,
    )


@router.get(
    "/{job_id}/report",
    operation_id="get_job_report",
    summary="Get the report of a job",
    response_model=Report,
    responses=problems.responses(
        errors.JobNotFound,
        errors.ReportNotFound,
        errors.FileGone,
        errors.NotAcceptable,
        also={
            200: {
                "description": "All figures; or, with `Accept: text/html`, a page for people.",
                "content": {HTML: {"schema": {"type": "string"}}},
            }
        },
    ),
)
async def report(
    job_id: JobId, request: Request, caller: Reader, services: ServicesDep
) -> Response:
    """What came in, what was done, what came out, with figures."""
    wanted = preferred(request.headers.get("accept", ""), JSON, HTML)
    kind = ArtifactKind.REPORT if wanted == JSON else ArtifactKind.REPORT_PAGE

    def find() -> Artifact:
        with transaction(services.sessions) as session:
            job = _outline(session, caller, job_id)
            rows = JobRepository.from_session(session).artifacts(job_id)
        for row in rows:
            if row.kind == kind:
                return row
        raise errors.ReportNotFound(job.id, job.status)

    artifact = await run_in_threadpool(find)
    return await whole_file(
        services.store,
        key=artifact.storage_key,
        filename=artifact.name,
        media_type=wanted,
        headers={"Vary": "Accept", **(REPORT_PAGE_HEADERS if wanted == HTML else {})},
    )


# --- Shared --------------------------------------------------------------------------------------


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what forbids a change of a job into the answer for it."""
    try:
        yield
    except jobs.Gone as error:
        raise errors.JobNotFound(error.job_id) from error
    except jobs.NotCancellable as error:
        raise errors.JobNotCancellable(error.job_id, error.status) from error
    except jobs.NotEnded as error:
        raise errors.JobNotEnded(error.job_id, error.status) from error


def _job(session: Session, caller: Caller, job_id: str) -> Job:
    job = JobRepository.from_session(session).get(job_id, tenant_id=caller.tenant_id)
    if job is None:
        raise errors.JobNotFound(job_id)
    return job


def _outline(session: Session, caller: Caller, job_id: str) -> Job:
    """A job without its request."""
    job = JobRepository.from_session(session).get_outline(job_id, tenant_id=caller.tenant_id)
    if job is None:
        raise errors.JobNotFound(job_id)
    return job


def _detail(session: Session, services: Services, job: Job) -> JobDetail:
    return views.job_detail(
        job,
        waiting_reason=jobs.waiting_reasons(session, [job], services.settings).get(job.id),
        result_model_id=ModelRepository.from_session(session).results_of([job.id]).get(job.id),
    )


def _sequence(last_event_id: str) -> int:
    if last_event_id.isascii() and last_event_id.isdecimal() and int(last_event_id) < 2**31:
        return int(last_event_id)
    raise errors.InvalidRequest(
        f"Last-Event-ID is {last_event_id!r}; it must be the id of an event, a number.",
        errors=[errors.FieldError("/header/Last-Event-ID", "must be the id of an event")],
    )


def _row_number(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        number = decode_cursor(cursor)
        # Longer ones are no number of a row: the database would not take them.
        if not number.isdecimal() or len(number) > 19 or int(number) >= 2**63:
            raise ValueError("not a number of a row")
        return int(number)
    except ValueError as error:
        raise errors.InvalidRequest(
            "after is no cursor of this list; give the `next_cursor` of the page before.",
            errors=[errors.FieldError("/query/after", "is no cursor of this list")],
        ) from error


def _metadata_filter(pairs: list[str]) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        wanted[key] = value if colon else None
    return wanted
