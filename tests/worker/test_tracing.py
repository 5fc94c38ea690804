"""Spans of attempts: real children under a real supervisor, and children that tell odd things."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from structlog.testing import capture_logs

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent, MetricEvent, Stage, StageEvent
from service.db.tables import JobStatus
from service.jobs.service import Claim
from service.spans import Spans
from tests.worker.conftest import Bench
from worker.observer import Observers, Phase
from worker.outcomes import Cancelled, Failed, Lost, Outcome
from worker.tracing import MAX_STAGES, RunTracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
REQUEST_ID = "b7ad6b7169203331"
CLAIM = Claim(
    "job_1",
    "tenant_1",
    1,
    "w1",
    20.0,
    method="argd",
    traceparent=f"00-{TRACE_ID}-{REQUEST_ID}-01",
    waited_seconds=1.5,
)


class Recorder:
    """Keeps the spans of a tracer."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = RunTracer(Spans(provider))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._kept.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def tree(self) -> dict[str, str]:
        """The name of each span's parent, by the span's own; spans of other programs have ids."""
        names = {span.context.span_id: span.name for span in self.spans}
        return {
            span.name: names.get(span.parent.span_id, format_span_id(span.parent.span_id))
            for span in self.spans
            if span.parent is not None
        }

    def run(self, bench: Bench, job_id: str, behaviour: str) -> Outcome:
        """One attempt at a job, below the request of `CLAIM`."""
        claim = replace(bench.claim(job_id), traceparent=CLAIM.traceparent)
        supervisor = bench.supervisor(behaviour)
        return replace(supervisor, observers=Observers([self.tracer])).run(claim)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def _attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


# --- Real attempts -------------------------------------------------------------------------------


def test_attempt_is_below_its_request_and_holds_phases_and_stages(
    bench: Bench, recorder: Recorder
) -> None:
    job_id = bench.add_job()
    recorder.run(bench, job_id, "succeed")
    assert recorder.tree() == {
        "job": REQUEST_ID,
        "prepare": "job",
        "child": "job",
        "load": "child",
        "teacher": "child",
        "store": "job",
    }
    (job,) = recorder.named("job")
    assert job.kind is SpanKind.CONSUMER
    assert {format_trace_id(span.context.trace_id) for span in recorder.spans} == {TRACE_ID}
    attributes = _attributes(job)
    assert attributes.pop("sanitizer.job.waited_seconds") is not None
    assert attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "sanitizer.job.id": job_id,
        "sanitizer.tenant.id": bench.job(job_id).tenant_id,
        "sanitizer.job.attempt": 1,
        "sanitizer.job.method": "argd",
        "sanitizer.job.outcome": "succeeded",
        "sanitizer.job.verdict": "allowed",
        "sanitizer.worker.id": "w1",
    }
    (load,), (teacher,), (child,) = map(recorder.named, ("load", "teacher", "child"))
    assert _attributes(teacher) == {"sanitizer.epoch": 1, "sanitizer.figure.loss": 0.5}
    assert child.start_time is not None
    assert load.start_time is not None
    assert teacher.end_time is not None
    assert child.end_time is not None
    assert child.start_time <= load.start_time
    assert load.end_time == teacher.start_time
    assert teacher.end_time <= child.end_time


def test_retry_after_a_killed_child_is_a_second_attempt_in_the_same_trace(
    bench: Bench, recorder: Recorder
) -> None:
    job_id = bench.add_job()
    recorder.run(bench, job_id, "be_killed")
    recorder.run(bench, job_id, "succeed")
    assert bench.job(job_id).status == JobStatus.SUCCEEDED
    first, second = recorder.named("job")
    told = ("sanitizer.job.attempt", "sanitizer.job.outcome", "error.type", "sanitizer.job.fault")
    assert [_attributes(first).get(name) for name in told] == [
        1,
        "failed",
        "child_killed",
        "machine",
    ]
    assert [_attributes(second).get(name) for name in told] == [2, "succeeded", None, None]
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    for job in (first, second):
        assert format_trace_id(job.context.trace_id) == TRACE_ID
        assert job.parent is not None
        assert format_span_id(job.parent.span_id) == REQUEST_ID


def test_every_line_of_an_attempt_has_its_ids_also_those_of_other_threads(
    bench: Bench, recorder: Recorder
) -> None:
    job_id = bench.add_job()
    structlog.contextvars.clear_contextvars()
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        recorder.run(bench, job_id, "talk_garbage")
    (job,) = recorder.named("job")
    ids = {
        "job_id": job_id,
        "tenant_id": bench.job(job_id).tenant_id,
        "attempt": 1,
        "worker_id": "w1",
        "trace_id": TRACE_ID,
        "span_id": format_span_id(job.context.span_id),
    }
    events = [line["event"] for line in lines]
    assert {"job begins", "a line of the child is no event", "job leaves this worker"} < set(events)
    for line in lines:
        assert line.items() >= ids.items(), line
    assert structlog.contextvars.get_contextvars() == {}


# --- What a child may tell -----------------------------------------------------------------------


def _begin(recorder: Recorder, claim: Claim = CLAIM) -> None:
    recorder.tracer.begins(claim)
    recorder.tracer.enters(claim, Phase.CHILD)


def test_job_of_a_request_that_was_not_traced_begins_a_trace(recorder: Recorder) -> None:
    claim = replace(CLAIM, traceparent=None)
    _begin(recorder, claim)
    recorder.tracer.ends(claim, Cancelled())
    (job,) = recorder.named("job")
    assert job.parent is None


def test_attempts_at_the_same_time_are_kept_apart(recorder: Recorder) -> None:
    other = replace(CLAIM, job_id="job_2")
    _begin(recorder)
    _begin(recorder, other)
    recorder.tracer.event(CLAIM, StageEvent(stage=Stage.LOAD, message=""))
    recorder.tracer.event(other, StageEvent(stage=Stage.DISTIL, message=""))
    recorder.tracer.ends(other, Cancelled())
    assert [span.name for span in recorder.spans] == ["distil", "child", "job"]
    recorder.tracer.ends(CLAIM, Lost())
    (_, lost) = recorder.named("job")
    assert _attributes(lost)["error.type"] == "lease_lost"


def test_stage_that_did_not_end_is_cut_short(recorder: Recorder) -> None:
    _begin(recorder)
    recorder.tracer.event(CLAIM, StageEvent(stage=Stage.TEACHER, message=""))
    recorder.tracer.ends(CLAIM, Cancelled())
    (teacher,), (job,) = recorder.named("teacher"), recorder.named("job")
    assert _attributes(teacher) == {"sanitizer.stage.cut_short": True}
    assert _attributes(job)["sanitizer.job.outcome"] == "cancelled"
    assert job.status.status_code is StatusCode.UNSET


def test_error_of_the_child_is_that_of_its_stage_and_of_the_job(recorder: Recorder) -> None:
    error = ErrorEvent(code="empty_class", fault=Fault.INPUT, message="Class 3 has no image.")
    _begin(recorder)
    recorder.tracer.event(CLAIM, StageEvent(stage=Stage.LOAD, message=""))
    recorder.tracer.event(CLAIM, error)
    recorder.tracer.ends(CLAIM, Failed(error))
    for span in (*recorder.named("load"), *recorder.named("job")):
        assert span.status.status_code is StatusCode.ERROR
        assert _attributes(span)["error.type"] == "empty_class"
    assert "Class 3" not in str([span.to_json() for span in recorder.spans])


def test_last_figures_of_a_stage_stay_and_those_that_are_none_do_not(recorder: Recorder) -> None:
    _begin(recorder)
    recorder.tracer.event(CLAIM, StageEvent(stage=Stage.TEACHER, message=""))
    for event in (
        MetricEvent(stage=Stage.TEACHER, epoch=1, values={"loss": 2.0, "accuracy": 0.5}),
        MetricEvent(stage=Stage.TEACHER, epoch=2, values={"loss": 1.0, "node": float("nan")}),
        MetricEvent(stage=Stage.TEACHER, epoch=10**30, values={}),
        MetricEvent(stage=Stage.DISTIL, epoch=9, values={"loss": 9.0}),
    ):
        recorder.tracer.event(CLAIM, event)
    recorder.tracer.ends(CLAIM, Cancelled())
    (teacher,) = recorder.named("teacher")
    assert _attributes(teacher) == {
        "sanitizer.epoch": 2,
        "sanitizer.figure.loss": 1.0,
        "sanitizer.figure.accuracy": 0.5,
        "sanitizer.stage.cut_short": True,
    }


@pytest.mark.parametrize(
    "at",
    [datetime(1, 1, 1), datetime(9999, 12, 31, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)],
)
def test_time_that_a_child_makes_up_stays_within_its_own(recorder: Recorder, at: datetime) -> None:
    _begin(recorder)
    for stage in (Stage.LOAD, Stage.TEACHER):
        recorder.tracer.event(CLAIM, StageEvent(stage=stage, message="", at=at))
    recorder.tracer.ends(CLAIM, Cancelled())
    (child,) = recorder.named("child")
    for span in (*recorder.named("load"), *recorder.named("teacher")):
        times = (child.start_time, span.start_time, span.end_time, child.end_time)
        assert list(times) == sorted(time for time in times if time is not None)


def test_child_that_tells_of_endless_stages_makes_few_spans(recorder: Recorder) -> None:
    _begin(recorder)
    for _ in range(10 * MAX_STAGES):
        recorder.tracer.event(CLAIM, StageEvent(stage=Stage.LOAD, message=""))
    recorder.tracer.ends(CLAIM, Cancelled())
    assert len(recorder.named("load")) == MAX_STAGES
