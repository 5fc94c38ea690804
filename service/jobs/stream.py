"""The events of a job as they come: server-sent events out of the table of events."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service import queue
from service.db.session import transaction
from service.db.tables import JobStatus
from service.jobs.repository import JobRepository
from service.jobs.schemas import JobEventOut
from service.jobs.views import event_out
from service.keys import service as keys
from service.keys.service import Caller
from service.services import Services

BATCH = 200
POLL_SECONDS = 1.0
"""How long a wake-up may be lost before it is noticed."""
HEARTBEAT_SECONDS = 15
RETRY_MILLISECONDS = 2000
"""How long a client is asked to wait before it connects again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Batch:
    events: list[JobEventOut]
    over: bool
    """Whether nothing follows: the job has ended, or the key is good no more."""


def response(services: Services, caller: Caller, job_id: str, *, after: int) -> EventSourceResponse:
    """The stream of a job's events behind the sequence number `after`.

    It ends after the last event of a job that has ended, or with the caller's key. Each event's id
    is its sequence number, so that a client that comes back with `Last-Event-ID` misses none and
    gets none twice.
    """
    return EventSourceResponse(
        _events(services, caller, job_id, after),
        ping=HEARTBEAT_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="heartbeat"),
        sep="\n",
    )


async def _events(
    services: Services, caller: Caller, job_id: str, after: int
) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="events", retry=RETRY_MILLISECONDS)
    read = _reader(services, caller, job_id)
    # Listening begins before the first read: what is written in between is not missed.
    async with queue.wakeups(services.settings, job_id) as wait:
        while True:
            batch = await run_in_threadpool(read, after)
            for event in batch.events:
                after = event.sequence
                yield ServerSentEvent(
                    event.model_dump_json(), event=event.type, id=str(event.sequence)
                )
            if batch.over:
                return
            if len(batch.events) < BATCH:
                await wait(POLL_SECONDS)


def _reader(services: Services, caller: Caller, job_id: str) -> Callable[[int], _Batch]:
    def read(after: int) -> _Batch:
        with transaction(services.sessions) as session:
            if not keys.still_holds(session, caller):
                return _Batch([], over=True)  # whoever comes back is told why
            jobs = JobRepository.from_session(session)
            # The status first: an event that is written in between is then at most read twice over.
            status = jobs.status_of(job_id)
            rows = jobs.events(job_id, after=after, limit=BATCH)
        over = status is None or JobStatus(status).is_terminal
        return _Batch([event_out(row) for row in rows], over and len(rows) < BATCH)

    return read
