"""Figures of a worker: what it observes, and how Prometheus gets it."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent, ResultEvent, Stage, StageEvent
from service import queue
from service.db.base import utc_now
from service.db.tables import JobStatus
from service.jobs.service import Claim
from service.settings import Settings
from tests.builders import make_metric_event, make_report
from tests.worker.conftest import Bench, child_command
from worker.metrics import MAX_CODES, MetricsServer, RunMetrics
from worker.observer import Observers
from worker.outcomes import Cancelled, Failed, Lost, Outcome, Released, Succeeded
from worker.process import WorkerProcess

CLAIM = Claim("job_1", "tenant_1", 1, "w1", 60.0, method="argd", waited_seconds=42.0)


class Watched:
    """A worker's figures, and what they say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.metrics = RunMetrics(self.registry, device="cuda", slots=2, clock=lambda: self.now)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"sanitizer_worker_{name}", labels)

    def run(self, outcome: Outcome, claim: Claim = CLAIM) -> None:
        self.metrics.begins(claim)
        self.metrics.ends(claim, outcome)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _failed(code: str = "out_of_memory", fault: Fault = Fault.MACHINE) -> Failed:
    return Failed(ErrorEvent(code=code, fault=fault, message="It failed."))


def _stage(stage: Stage, at: datetime) -> StageEvent:
    return StageEvent(stage=stage, message="begins", at=at)


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Succeeded(make_report(), []), "succeeded"),
        (_failed(fault=Fault.INPUT), "failed_input"),
        (_failed(), "failed_machine"),
        (Cancelled(), "cancelled"),
        (Released(), "released"),
        (Lost(), "lost"),
    ],
)
def test_attempt_is_counted_and_timed_by_its_outcome(
    watched: Watched, outcome: Outcome, name: str
) -> None:
    watched.run(outcome)
    labels = {"method": "argd", "outcome": name}
    assert watched.value("attempts_total", method="argd") == 1
    assert watched.value("outcomes_total", **labels) == 1
    assert watched.value("job_seconds_count", **labels) == 1


def test_outcomes_that_have_not_happened_are_zero_from_the_start(watched: Watched) -> None:
    assert watched.value("outcomes_total", method="argd", outcome="lost") == 0
    assert watched.value("attempts_total", method="finetune") == 0


def test_first_attempt_tells_how_long_the_job_waited(watched: Watched) -> None:
    watched.run(Cancelled())
    assert watched.value("queue_wait_seconds_sum") == 42
    assert watched.value("retries_total", method="argd") == 0


def test_attempt_that_is_not_the_first_is_a_retry(watched: Watched) -> None:
    watched.run(Cancelled(), replace(CLAIM, attempt=2, waited_seconds=None))
    assert watched.value("queue_wait_seconds_count") == 0
    assert watched.value("retries_total", method="argd") == 1


def test_failures_are_counted_by_fault_and_code(watched: Watched) -> None:
    watched.run(_failed("class_mismatch", Fault.INPUT))
    assert watched.value("failures_total", fault="input", code="class_mismatch") == 1


def test_codes_that_a_child_makes_up_are_counted_together(watched: Watched) -> None:
    for number in range(MAX_CODES + 5):
        watched.run(_failed(f"made_up_{number}"))
    assert watched.value("failures_total", fault="machine", code="made_up_99") == 1
    assert watched.value("failures_total", fault="machine", code="other") == 5


class TestStages:
    """Of a run that began an hour ago."""

    @pytest.fixture
    def began(self, watched: Watched) -> datetime:
        watched.metrics.begins(CLAIM)
        watched.now += 3600
        return utc_now() - timedelta(hours=1)

    def test_stage_lasts_until_the_next_one_begins(self, watched: Watched, began: datetime) -> None:
        watched.metrics.event(CLAIM, _stage(Stage.LOAD, began))
        watched.metrics.event(CLAIM, _stage(Stage.DISTIL, began + timedelta(seconds=7)))
        assert watched.value("stage_seconds_sum", stage="load", method="argd") == 7
        assert watched.value("stage_seconds_count", stage="distil", method="argd") is None

    def test_last_stage_lasts_until_the_result(self, watched: Watched, began: datetime) -> None:
        watched.metrics.event(CLAIM, _stage(Stage.WRITE, began))
        watched.metrics.event(CLAIM, ResultEvent(artifacts=[], at=began + timedelta(seconds=3)))
        watched.metrics.ends(CLAIM, Succeeded(make_report(), []))
        assert watched.value("stage_seconds_sum", stage="write", method="argd") == 3

    def test_stage_that_is_broken_off_is_not_counted(
        self, watched: Watched, began: datetime
    ) -> None:
        watched.metrics.event(CLAIM, _stage(Stage.DISTIL, began))
        error = _failed().error.model_copy(update={"at": began + timedelta(seconds=3)})
        watched.metrics.event(CLAIM, error)
        watched.metrics.ends(CLAIM, Failed(error))
        assert watched.value("stage_seconds_count", stage="distil", method="argd") is None

    def test_no_stage_is_longer_than_its_attempt_whatever_the_child_says(
        self, watched: Watched, began: datetime
    ) -> None:
        watched.metrics.event(CLAIM, _stage(Stage.LOAD, began))
        watched.metrics.event(CLAIM, _stage(Stage.DISTIL, began.replace(year=9000)))
        assert watched.value("stage_seconds_sum", stage="load", method="argd") == 3600


def test_events_are_counted_by_type(watched: Watched) -> None:
    watched.metrics.begins(CLAIM)
    for epoch in (1, 2):
        watched.metrics.event(CLAIM, make_metric_event(epoch))
    assert watched.value("events_total", type="metric") == 2


def test_slots_are_busy_while_jobs_run(watched: Watched) -> None:
    other = replace(CLAIM, job_id="job_2")
    watched.metrics.begins(CLAIM)
    watched.metrics.begins(other)
    assert watched.value("slots", device="cuda") == 2
    assert watched.value("slots_busy", device="cuda") == 2
    watched.metrics.ends(CLAIM, Released())
    watched.metrics.ends(other, Released())
    assert watched.value("slots_busy", device="cuda") == 0


def test_use_of_slots_grows_while_jobs_run_and_never_shrinks(watched: Watched) -> None:
    watched.metrics.begins(CLAIM)
    watched.metrics.begins(replace(CLAIM, job_id="job_2"))
    seen = []
    for at in (10.0, 15.0):
        watched.now = at
        seen.append(watched.value("busy_seconds_total", device="cuda"))
    watched.metrics.ends(CLAIM, Released())
    seen.append(watched.value("busy_seconds_total", device="cuda"))
    watched.now = 20.0
    seen.append(watched.value("busy_seconds_total", device="cuda"))
    assert seen == [20, 30, 30, 35]


def test_same_job_may_be_here_twice_under_different_attempts(watched: Watched) -> None:
    later = replace(CLAIM, attempt=2)
    watched.metrics.begins(CLAIM)
    watched.metrics.begins(later)
    watched.metrics.ends(CLAIM, Lost())
    assert watched.value("slots_busy", device="cuda") == 1


def test_real_run_leaves_its_figures(bench: Bench, watched: Watched) -> None:
    supervisor = replace(bench.supervisor("succeed"), observers=Observers([watched.metrics]))
    supervisor.run(bench.claim(bench.add_job()))
    method = "argd"
    assert watched.value("outcomes_total", method=method, outcome="succeeded") == 1
    assert watched.value("stage_seconds_count", stage="load", method=method) == 1
    assert watched.value("stage_seconds_count", stage="teacher", method=method) == 1
    assert watched.value("events_total", type="result") == 1
    assert watched.value("slots_busy", device="cuda") == 0


class TestServer:
    """Over HTTP."""

    @pytest.fixture
    def process(self, bench: Bench, port: int) -> Iterator[WorkerProcess]:
        settings = bench.settings.model_copy(
            update={"child_command": child_command("succeed"), "worker_metrics_port": port}
        )
        process = WorkerProcess(settings, queue.make_producer(settings))
        process.start()
        yield process
        process.stop()

    def test_worker_answers_prometheus_until_it_stops(
        self, bench: Bench, process: WorkerProcess, port: int
    ) -> None:
        job_id = bench.add_job()
        process.run(job_id)
        assert bench.job(job_id).status == JobStatus.SUCCEEDED
        address = f"http://127.0.0.1:{port}/metrics"
        families = {f.name: f for f in text_string_to_metric_families(httpx.get(address).text)}
        ended = {
            s.labels["outcome"]: s.value
            for s in families["sanitizer_worker_outcomes"].samples
            if s.name.endswith("_total") and s.labels["method"] == "argd"
        }
        assert ended["succeeded"] == 1
        assert families["sanitizer_build_info"].samples[0].labels["version"]
        assert "process_cpu_seconds" in families
        process.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)

    def test_port_0_opens_none(self, settings: Settings) -> None:
        server = MetricsServer(CollectorRegistry(), "127.0.0.1", settings.worker_metrics_port)
        server.start()
        server.stop()
        assert settings.worker_metrics_port == 0

    def test_port_that_is_taken_does_not_keep_the_worker_from_its_work(self, port: int) -> None:
        with socket.create_server(("127.0.0.1", port)):
            server = MetricsServer(CollectorRegistry(), "127.0.0.1", port)
            server.start()
            server.stop()
