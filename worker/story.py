"""Writes the events of a run to the database, in batches."""

import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from sanitizer.events import ErrorEvent, Event, ProgressEvent, ResultEvent
from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, transaction
from service.jobs import service as jobs
from service.jobs.service import Claim, LeaseLost, LeaseState
from worker.observer import Observers

MIN_PROGRESS = 0.005
"""Less progress than this is not worth a row,"""
MAX_PROGRESS_SECONDS = 10.0
"""unless the last one is this old."""
MAX_PENDING = 5_000
PAUSE_SECONDS = 2.0
"""Between two tries while the database is away."""

log = structlog.get_logger(__name__)


class Story:
    """The events of one attempt on their way to the database.

    While the database is away they wait here, up to a bound, and the child in turn waits for us.

    Attributes:
        last: The event that the run ended with. It is not written here: it decides about the job.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        claim: Claim,
        *,
        on_state: Callable[[LeaseState], None],
        wake: Callable[[str], None],
        observers: Observers = Observers(),  # noqa: B008  # it has no state
    ) -> None:
        self.last: ResultEvent | ErrorEvent | None = None
        self._sessions = sessions
        self._claim = claim
        self._on_state = on_state
        self._wake = wake
        self._observers = observers
        self._pending: list[Event] = []
        self._told_fraction = -1.0
        self._told_at = 0.0
        self._next_try_at = 0.0

    @property
    def room(self) -> int:
        """How many events may be added before the next `write`."""
        return MAX_PENDING - len(self._pending)

    def add(self, events: Iterable[Event]) -> None:
        """Takes events in. Of progress that comes in a row the last one stays."""
        for event in events:
            if self.last is not None:
                continue  # nothing counts after the last one
            self._observers.event(self._claim, event)
            if isinstance(event, ResultEvent | ErrorEvent):
                self.last = event
            elif (
                isinstance(event, ProgressEvent)
                and self._pending
                and isinstance(self._pending[-1], ProgressEvent)
            ):
                self._pending[-1] = event
            else:
                self._pending.append(event)

    def write(self) -> None:
        """Writes what has come, in one transaction.

        While the database is away it is kept for the next time. What the database refuses is left
        out: the run would tell it again the next time.
        """
        if time.monotonic() < self._next_try_at:
            return
        batch = self._batch()
        if not batch:
            self._pending.clear()
            return
        try:
            with transaction(self._sessions) as session:
                state = jobs.append_events(session, self._claim, batch)
        except LeaseLost:
            self._pending.clear()
            self._on_state(LeaseState.LOST)
            return
        except DATABASE_AWAY as error:
            log.warning("events wait for the database", events=len(batch), reason=str(error))
            self._next_try_at = time.monotonic() + PAUSE_SECONDS
            return
        except DataError as error:
            log.warning("the database refuses events", events=len(batch), reason=str(error))
            self._write_each(batch)
            return
        self._pending.clear()
        for event in batch:
            if isinstance(event, ProgressEvent):
                self._told_fraction, self._told_at = event.fraction, time.monotonic()
        self._on_state(state)
        self._wake(self._claim.job_id)

    def _write_each(self, batch: Sequence[Event]) -> None:
        """Writes events one by one, but for those that the database refuses."""
        self._pending.clear()
        for event in batch:
            try:
                with transaction(self._sessions) as session:
                    jobs.append_events(session, self._claim, [event])
            except DataError:
                log.warning("an event is left out", type=event.type)
            except LeaseLost:
                self._on_state(LeaseState.LOST)
                return
            except DATABASE_AWAY:
                return  # what is left of a batch that was refused is not worth more
        self._wake(self._claim.job_id)

    def write_rest(self, session: Session) -> None:
        """Adds what still waits to the transaction that tells how the attempt ended.

        Raises:
            LeaseLost: The job is no longer the worker's.
        """
        batch = self._batch()
        if batch:
            jobs.append_events(session, self._claim, batch)

    def forget(self) -> None:
        """Drops what waits."""
        self._pending.clear()

    def _batch(self) -> list[Event]:
        return [event for event in self._pending if self._is_worth_a_row(event)]

    def _is_worth_a_row(self, event: Event) -> bool:
        if not isinstance(event, ProgressEvent):
            return True
        return (
            event.fraction - self._told_fraction >= MIN_PROGRESS
            or event.fraction >= 1 > self._told_fraction
            or time.monotonic() - self._told_at >= MAX_PROGRESS_SECONDS
        )
