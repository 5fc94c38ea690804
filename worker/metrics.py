"""What a worker tells Prometheus: its runs, how they ended, how its slots are used."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sanitizer.catalog import METHODS
from sanitizer.events import ErrorEvent, Event, ResultEvent, Stage, StageEvent
from service.build_info import add_build_info
from service.db.base import utc_now
from service.jobs.service import Claim
from worker.observer import Phase
from worker.outcomes import Cancelled, Failed, Lost, Outcome, Released, Succeeded

JOB_BUCKETS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 57600, 86400)
"""Seconds: from a run over a few images to a whole day, the longest that one may take."""
STAGE_BUCKETS = (1, 3, *JOB_BUCKETS)
WAIT_BUCKETS = (1, 5, 15, 60, 300, 900, 1800, 3600, 14400, 86400)
OUTCOMES = ("succeeded", "failed_input", "failed_machine", "cancelled", "released", "lost")
MAX_CODES = 100
"""Error codes with a series of their own. They come from the child, which reads strangers' files
and so may say anything; the others are counted as `other`."""

log = structlog.get_logger(__name__)


class RunMetrics(Collector):
    """Counts and times the attempts of this worker; a `RunObserver`.

    Args:
        device: Kind of device that its slots have: `cpu` or `cuda`.
        slots: Jobs that it runs at a time.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        device: str,
        slots: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._slots = slots
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, int], _Run] = {}
        self._busy_seconds = 0.0
        self._codes: set[str] = set()
        self._attempts = Counter(
            "sanitizer_worker_attempts",
            "Attempts at jobs that have begun here.",
            ["method"],
            registry=registry,
        )
        self._retries = Counter(
            "sanitizer_worker_retries",
            "Attempts at jobs that had been tried before.",
            ["method"],
            registry=registry,
        )
        self._outcomes = Counter(
            "sanitizer_worker_outcomes",
            "How attempts ended; `released`: given back because the worker was stopped, `lost`: the"
            " lease was, and with it the work.",
            ["method", "outcome"],
            registry=registry,
        )
        self._failures = Counter(
            "sanitizer_worker_failures",
            "Attempts that failed, by whose fault it was and error code.",
            ["fault", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sanitizer_worker_job_seconds",
            "Time from the claim of a job to the end of the attempt.",
            ["method", "outcome"],
            buckets=JOB_BUCKETS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "sanitizer_worker_stage_seconds",
            "Time that a stage of a run took; one that was broken off is not counted.",
            ["stage", "method"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._wait_seconds = Histogram(
            "sanitizer_worker_queue_wait_seconds",
            "Time from the submission of a job to its first attempt.",
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._events = Counter(
            "sanitizer_worker_events",
            "Events of runs that were taken in.",
            ["type"],
            registry=registry,
        )
        for method in METHODS:
            # A rate cannot see the first event of a series that was not there before it.
            self._attempts.labels(method.name)
            self._retries.labels(method.name)
            for outcome in OUTCOMES:
                self._outcomes.labels(method.name, outcome)
        registry.register(self)

    # --- What it is told -------------------------------------------------------------------------

    def begins(self, claim: Claim) -> None:
        """See `worker.observer.RunObserver`."""
        with self._lock:
            self._runs[claim.job_id, claim.attempt] = _Run(self._clock())
        self._attempts.labels(claim.method).inc()
        if claim.attempt > 1:
            self._retries.labels(claim.method).inc()
        if claim.waited_seconds is not None:
            self._wait_seconds.observe(max(0.0, claim.waited_seconds))

    def enters(self, claim: Claim, phase: Phase) -> None:
        """See `worker.observer.RunObserver`; the figures are by stage."""

    def event(self, claim: Claim, event: Event) -> None:
        """See `worker.observer.RunObserver`."""
        self._events.labels(event.type).inc()
        if not isinstance(event, StageEvent | ResultEvent | ErrorEvent):
            return
        with self._lock:
            run = self._runs[claim.job_id, claim.attempt]
            # The times come from the child, but no stage is longer than its attempt.
            ended = run.stage
            seconds = min(run.turn(event), self._clock() - run.began)
        if ended is not None and not isinstance(event, ErrorEvent):
            self._stage_seconds.labels(ended, claim.method).observe(seconds)

    def ends(self, claim: Claim, outcome: Outcome) -> None:
        """See `worker.observer.RunObserver`."""
        with self._lock:
            run = self._runs.pop((claim.job_id, claim.attempt))
            seconds = self._clock() - run.began
            self._busy_seconds += seconds
        name = _name_of(outcome)
        self._outcomes.labels(claim.method, name).inc()
        self._seconds.labels(claim.method, name).observe(seconds)
        if isinstance(outcome, Failed):
            error = outcome.error
            self._failures.labels(error.fault.value, self._known(error.code)).inc()

    def _known(self, code: str) -> str:
        with self._lock:
            if len(self._codes) < MAX_CODES:
                self._codes.add(code)
            return code if code in self._codes else "other"

    # --- What it tells ---------------------------------------------------------------------------

    def describe(self) -> Iterable[Metric]:
        """The families of `collect`."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """How the slots are used; time counts while a job runs, not only once it has ended."""
        with self._lock:
            now = self._clock()
            busy = len(self._runs)
            busy_seconds = self._busy_seconds + sum(now - run.began for run in self._runs.values())
        slots = GaugeMetricFamily(
            "sanitizer_worker_slots", "Jobs that this worker can run at a time.", labels=["device"]
        )
        slots.add_metric([self._device], self._slots)
        used = GaugeMetricFamily(
            "sanitizer_worker_slots_busy", "Jobs that run here now.", labels=["device"]
        )
        used.add_metric([self._device], busy)
        used_seconds = CounterMetricFamily(
            "sanitizer_worker_busy_seconds",
            "Time that slots were in use, added up over the slots.",
            labels=["device"],
        )
        used_seconds.add_metric([self._device], busy_seconds)
        return [slots, used, used_seconds]


class MetricsServer:
    """Answers Prometheus over HTTP, in a thread.

    Args:
        port: 0: it does not answer at all.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._running: tuple[WSGIServer, threading.Thread] | None = None

    def start(self) -> None:
        """Begins to answer. A port that cannot be had is logged: jobs run without figures too."""
        if self._port == 0:
            return
        try:
            self._running = start_http_server(self._port, self._host, self._registry)
        except OSError as error:
            log.error(
                "no figures for Prometheus: the address cannot be had",
                host=self._host,
                port=self._port,
                reason=str(error),
            )

    def stop(self) -> None:
        """Closes the port."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.shutdown()
        server.server_close()
        thread.join()


def make_registry() -> CollectorRegistry:
    """A registry that knows this process and its version."""
    registry = CollectorRegistry()
    add_build_info(registry)
    ProcessCollector(registry=registry)
    return registry


@dataclass
class _Run:
    """Where an attempt is."""

    began: float
    stage: Stage | None = None
    stage_began_at: datetime = field(default_factory=utc_now)

    def turn(self, event: StageEvent | ResultEvent | ErrorEvent) -> float:
        """Goes to the next stage, or past the last; gives how long the one before it took.

        By the times in the events: they are read in batches, and wait while the database is away.
        """
        seconds = (event.at - self.stage_began_at).total_seconds()
        self.stage = event.stage if isinstance(event, StageEvent) else None
        self.stage_began_at = event.at
        return max(0.0, seconds)


def _name_of(outcome: Outcome) -> str:
    match outcome:
        case Succeeded():
            return "succeeded"
        case Failed(error):
            return f"failed_{error.fault}"
        case Cancelled():
            return "cancelled"
        case Released():
            return "released"
        case Lost():
            return "lost"
