"""Who looks on while a worker runs jobs: figures and traces, without a say in what happens."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import structlog

from sanitizer.events import Event
from service.jobs.service import Claim
from worker.outcomes import Outcome

log = structlog.get_logger(__name__)


class Phase(StrEnum):
    """The parts of an attempt, in order; one that is stopped leaves some out."""

    PREPARE = "prepare"
    """Its folder and a slot are waited for, its files fetched."""
    CHILD = "child"
    """The child process runs."""
    STORE = "store"
    """What the child has left goes to the store, and how it ended to the database."""


class RunObserver(Protocol):
    """Is told of every attempt of this worker; several attempts run at once.

    All calls of one attempt come from its thread: what an observer binds of structlog's context
    when it begins is in the lines of the attempt until the observer takes it off when it ends.
    """

    def begins(self, claim: Claim) -> None:
        """A job was claimed."""

    def enters(self, claim: Claim, phase: Phase) -> None:
        """A phase begins; the one before is over."""

    def event(self, claim: Claim, event: Event) -> None:
        """The run's child said something."""

    def ends(self, claim: Claim, outcome: Outcome) -> None:
        """The attempt is over, and written as far as it could be."""


class Observers:
    """Tells several observers; one that fails is logged and does not disturb the job."""

    def __init__(self, observers: Sequence[RunObserver] = ()) -> None:
        self._observers = tuple(observers)

    def begins(self, claim: Claim) -> None:
        """See `RunObserver`."""
        self._tell(lambda observer: observer.begins(claim))

    def enters(self, claim: Claim, phase: Phase) -> None:
        """See `RunObserver`."""
        self._tell(lambda observer: observer.enters(claim, phase))

    def event(self, claim: Claim, event: Event) -> None:
        """See `RunObserver`."""
        self._tell(lambda observer: observer.event(claim, event))

    def ends(self, claim: Claim, outcome: Outcome) -> None:
        """See `RunObserver`."""
        self._tell(lambda observer: observer.ends(claim, outcome))

    def _tell(self, tell: Callable[[RunObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                log.exception("an observer failed", observer=type(observer).__name__)
