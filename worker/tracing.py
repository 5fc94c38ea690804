"""Spans of what a worker does. Imported only where traces are asked for.

The child makes none: it has no network and no credentials, on purpose. Its stages become spans here
from its own events, with their own times.
"""

import math
import time
from datetime import UTC
from itertools import islice

import structlog
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from sanitizer.events import ErrorEvent, Event, MetricEvent, ResultEvent, Stage, StageEvent
from service.jobs.service import Claim, storable
from service.spans import (
    BROKER,
    JOB_ID,
    MESSAGING_OPERATION_NAME,
    MESSAGING_OPERATION_TYPE,
    MESSAGING_SYSTEM,
    TENANT_ID,
    Spans,
    log_fields,
)
from worker.observer import Phase, RunObserver
from worker.outcomes import Failed, Lost, Outcome, Succeeded

MAX_STAGES = 50
"""Of one attempt. There are seven; a child that was taken over could tell of any number."""
MAX_FIGURES = 50
"""Of one event, likewise."""
MAX_EPOCH = 2**31
"""A number that fits no field of the wire would cost all the spans that are sent with it."""
MAX_NAME = 80


class RunTracer(RunObserver):
    """Makes a span of every attempt, below the request that submitted the job.

    The parent is in the claim, not in the message: a message may be lost and sent again, and a
    second attempt belongs to the same trace as the first.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._traces: dict[Claim, _Trace] = {}  # each is used by the thread of its attempt alone

    def begins(self, claim: Claim) -> None:
        """Opens the span, and puts its ids into the log lines of this thread."""
        trace = self._traces[claim] = _Trace(self._spans, claim)
        structlog.contextvars.bind_contextvars(**log_fields(trace.job))

    def enters(self, claim: Claim, phase: Phase) -> None:
        """Opens a span below it, and closes that of the phase before."""
        self._traces[claim].enter(phase)

    def event(self, claim: Claim, event: Event) -> None:
        """Opens and closes those of stages."""
        self._traces[claim].hear(event)

    def ends(self, claim: Claim, outcome: Outcome) -> None:
        """Closes all."""
        self._traces.pop(claim).end(outcome)
        structlog.contextvars.unbind_contextvars("trace_id", "span_id")


class _Trace:
    """The spans of one attempt: the job, below it its phases, below the child's its stages."""

    def __init__(self, spans: Spans, claim: Claim) -> None:
        self._tracer = spans.tracer
        attributes: dict[str, str | int | float] = {
            MESSAGING_SYSTEM: BROKER,
            MESSAGING_OPERATION_NAME: "process",
            MESSAGING_OPERATION_TYPE: "process",
            JOB_ID: claim.job_id,
            TENANT_ID: claim.tenant_id,
            "sanitizer.job.attempt": claim.attempt,
            "sanitizer.job.method": claim.method,
            "sanitizer.worker.id": claim.worker_id,
        }
        if claim.waited_seconds is not None:
            attributes["sanitizer.job.waited_seconds"] = claim.waited_seconds
        parent = spans.parent_from({"traceparent": claim.traceparent} if claim.traceparent else {})
        self.job = self._tracer.start_span("job", parent, SpanKind.CONSUMER, attributes)
        self._phase: Span | None = None
        self._stage: Span | None = None
        self._stage_name: Stage | None = None
        self._stages = 0
        self._latest = 0

    def enter(self, phase: Phase) -> None:
        now = self._leave()
        self._phase = self._begin(phase.value, below=self.job, at=now)
        self._latest = now

    def hear(self, event: Event) -> None:
        match event:
            case StageEvent():
                at = self._time_of(event)
                self._end_stage(at)
                self._begin_stage(event.stage, at)
            case MetricEvent() if self._stage is not None and event.stage == self._stage_name:
                self._stage.set_attributes(_figures(event))
            case ErrorEvent():
                if self._stage is not None:
                    _fail(self._stage, _code(event))
                self._end_stage(self._time_of(event))
            case ResultEvent():
                self._end_stage(self._time_of(event))

    def end(self, outcome: Outcome) -> None:
        now = self._leave()
        self.job.set_attribute("sanitizer.job.outcome", type(outcome).__name__.lower())
        match outcome:
            case Succeeded(report):
                self.job.set_attribute("sanitizer.job.verdict", report.decision.verdict.value)
            case Failed(error):
                self.job.set_attribute("sanitizer.job.fault", error.fault.value)
                _fail(self.job, _code(error))
            case Lost():
                _fail(self.job, "lease_lost")
        self.job.end(now)

    def _leave(self) -> int:
        """Ends the phase, and a stage that its child has not ended; gives the time."""
        now = max(time.time_ns(), self._latest)
        if self._stage is not None:
            self._stage.set_attribute("sanitizer.stage.cut_short", True)
        self._end_stage(now)
        if self._phase is not None:
            self._phase.end(now)
            self._phase = None
        return now

    def _begin_stage(self, stage: Stage, at: int) -> None:
        self._stages += 1
        if self._stages <= MAX_STAGES:
            self._stage = self._begin(stage.value, below=self._phase or self.job, at=at)
            self._stage_name = stage

    def _end_stage(self, at: int) -> None:
        if self._stage is not None:
            self._stage.end(at)
            self._stage = None

    def _begin(self, name: str, *, below: Span, at: int) -> Span:
        return self._tracer.start_span(name, set_span_in_context(below), start_time=at)

    def _time_of(self, event: Event) -> int:
        """When it was by the child's clock, in nanoseconds.

        The child's word is not trusted: never in the future, nor before what came before.
        """
        at = event.at if event.at.tzinfo is not None else event.at.replace(tzinfo=UTC)
        told = int(at.timestamp() * 1e9)
        self._latest = max(self._latest, min(told, time.time_ns()))
        return self._latest


def _figures(event: MetricEvent) -> dict[str, float]:
    figures = {
        f"sanitizer.figure.{storable(name)[:MAX_NAME]}": value
        for name, value in islice(event.values.items(), MAX_FIGURES)
        if math.isfinite(value)
    }
    if event.epoch is None or abs(event.epoch) > MAX_EPOCH:
        return figures
    return {"sanitizer.epoch": event.epoch, **figures}


def _code(error: ErrorEvent) -> str:
    code: str = storable(error.code)[:MAX_NAME]
    return code


def _fail(span: Span, code: str) -> None:
    span.set_attribute(error_attributes.ERROR_TYPE, code)
    span.set_status(StatusCode.ERROR)
