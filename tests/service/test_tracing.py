"""Traces of requests, as a collector gets them from the app behind a real server."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.cli.stack import environment_of
from service.db.session import SessionFactory, transaction
from service.db.tables import Job, Scope
from service.settings import Settings
from service.tracing import TracingNotInstalled
from tests.collector import Collector, ReceivedSpan, collecting
from tests.service.conftest import MakeKey, serve
from tests.service.jobs.builders import job_body
from worker.tasks import make_app

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}

Ask = Callable[[Callable[[httpx.Client], object]], list[ReceivedSpan]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def settings(settings: Settings, collector: Collector) -> Settings:
    return settings.model_copy(update={"tracing_endpoint": collector.url})


@pytest.fixture
def ask(request: pytest.FixtureRequest, make_key: MakeKey, collector: Collector) -> Ask:
    """Serves the app, lets a client ask, stops; gives the spans that came."""

    def ask(work: Callable[[httpx.Client], object]) -> list[ReceivedSpan]:
        headers = {"Authorization": f"Bearer {make_key('acme', [Scope.ADMIN])}"}
        app: FastAPI = request.getfixturevalue("app")
        with (
            serve(app) as address,
            httpx.Client(base_url=address, headers=headers, trust_env=False) as client,
        ):
            work(client)
        return collector.spans

    return ask


def _named(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    found = [span for span in spans if span.name == name]
    assert len(found) == 1, [span.name for span in spans]
    return found[0]


def test_request_is_a_span_below_the_one_it_names(ask: Ask) -> None:
    headers = {"X-Request-ID": "mine", **PARENT}
    (span,) = ask(lambda client: client.get("/v1/models/model_x?after=secret", headers=headers))
    assert (span.name, span.kind, span.failed) == ("GET /v1/models/{model_id}", "server", False)
    assert (span.trace_id, span.parent_id) == (TRACE_ID, "b7ad6b7169203331")
    tenant = span.attributes.pop("sanitizer.tenant.id")
    assert tenant.startswith("tenant_")
    assert span.attributes == {
        "http.request.method": "GET",
        "http.route": "/v1/models/{model_id}",
        "http.response.status_code": 404,
        "url.path": "/v1/models/model_x",
        "url.scheme": "http",
        "sanitizer.request.id": "mine",
    }
    assert span.service == "sanitizer-api"
    assert span.resource["service.version"]


def test_request_that_names_no_span_begins_a_trace(ask: Ask) -> None:
    first, second = ask(
        lambda client: [
            client.get("/v1/nothing"),
            client.request("MADE-UP", "/v1/models", headers={"traceparent": "00-nonsense"}),
        ]
    )
    assert (first.name, second.name) == ("GET", "HTTP /v1/models")
    assert first.parent_id == second.parent_id == ""
    assert first.trace_id != second.trace_id
    assert second.attributes["http.request.method"] == "_OTHER"


def test_request_of_a_trace_that_is_not_sampled_leaves_no_span(ask: Ask) -> None:
    unwanted = {"traceparent": PARENT["traceparent"].removesuffix("01") + "00"}
    assert ask(lambda client: client.get("/v1/models", headers=unwanted)) == []


def test_health_and_figures_leave_no_span(ask: Ask) -> None:
    paths = ("/healthz", "/readyz", "/metrics")
    assert ask(lambda client: [client.get(path) for path in paths]) == []


def test_mistake_of_ours_is_a_failed_span_without_its_message(ask: Ask, app: FastAPI) -> None:
    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("the password is hunter2")

    (span,) = ask(lambda client: client.get("/boom"))
    assert (span.name, span.failed) == ("GET /boom", True)
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "RuntimeError"
    assert "hunter2" not in str(span)


def test_submitted_job_remembers_the_request_and_is_joined_to_it_in_the_log(
    capsys: pytest.CaptureFixture[str], ask: Ask, sessions: SessionFactory
) -> None:
    answers: list[httpx.Response] = []

    def submit(client: httpx.Client) -> None:
        body = job_body(client)
        answers.append(
            client.post("/v1/jobs", json=body, headers={"X-Request-ID": "mine", **PARENT})
        )

    spans = ask(submit)
    assert answers[0].status_code == 202
    job_id = answers[0].json()["id"]
    server = _named(spans, "POST /v1/jobs")
    sending = _named(spans, "send sanitizer.jobs")
    assert (sending.kind, sending.parent_id) == ("producer", server.span_id)
    assert sending.trace_id == server.trace_id == TRACE_ID
    assert sending.attributes["sanitizer.job.id"] == job_id
    assert sending.attributes["messaging.destination.name"] == "sanitizer.jobs"
    with transaction(sessions) as session:
        job = session.get_one(Job, job_id)
    assert job.traceparent is not None
    assert job.traceparent.startswith(f"00-{TRACE_ID}-{server.span_id}-")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    mine = [line for line in lines if line.get("request_id") == "mine"]
    ours = [line["event"] for line in mine if line["logger"].startswith("service.")]
    assert ours == ["job submitted", "request"]
    assert mine[0]["job_id"] == job_id
    for line in mine:
        assert line["tenant_id"] == job.tenant_id
        assert (line["trace_id"], line["span_id"]) == (TRACE_ID, server.span_id)


def test_job_is_submitted_while_the_broker_is_down_and_its_sending_fails(
    ask: Ask, app: FastAPI
) -> None:
    app.state.services.queue.conf.broker_url = "redis://127.0.0.1:1/0"

    def submit(client: httpx.Client) -> None:
        assert client.post("/v1/jobs", json=job_body(client)).status_code == 202

    spans = ask(submit)
    assert _named(spans, "send sanitizer.jobs").failed
    assert not _named(spans, "POST /v1/jobs").failed


class TestCollectorAway:
    """Somebody listens at its address, but never answers."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Iterator[Settings]:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            yield settings.model_copy(update={"tracing_endpoint": address})

    def test_requests_do_not_wait_for_it(
        self,
        capsys: pytest.CaptureFixture[str],
        app: FastAPI,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("service.spans.CLOSE_SECONDS", 0.5)
        with serve(app) as address, httpx.Client(base_url=address, trust_env=False) as client:
            began = time.monotonic()
            for _ in range(50):
                assert client.get("/v1/models").status_code == 401
            assert time.monotonic() - began < 30  # the exporter would wait for 10 s each time
            ended = time.monotonic()
        assert time.monotonic() - ended < 10
        said = [line for line in capsys.readouterr().err.splitlines() if "opentelemetry" in line]
        assert len(said) < 5


# --- Off, or not installed -----------------------------------------------------------------------

# FastAPI needs the interface of OpenTelemetry itself; what is in our extra is blocked here.
API_OFF = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
from service.app import create_app
from service.settings import Settings

create_app(Settings())
"""
WORKER_OFF = """
import sys
sys.modules["opentelemetry"] = None
from service.queue import make_producer
from service.settings import Settings
from worker.process import WorkerProcess
from worker.tasks import make_app

make_app(Settings())
WorkerProcess(Settings(), make_producer(Settings()))
"""


@pytest.mark.parametrize("program", [API_OFF, WORKER_OFF], ids=["api", "worker"])
def test_without_the_setting_nothing_of_the_extra_is_asked_for(
    settings: Settings, program: str, tmp_path: Path
) -> None:
    variables = environment_of(settings)
    assert variables.pop("SANITIZER_TRACING_ENDPOINT")
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    ours = 'print(*{"service.spans", "service.request_spans", "worker.tracing"} & {*sys.modules})'
    ran = subprocess.run(
        [sys.executable, "-c", program + ours],
        env={**os.environ, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


@pytest.fixture
def log_handlers() -> Iterator[None]:
    """Puts pytest's own back after an app that came as far as its logs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("log_handlers")
@pytest.mark.parametrize("make", [create_app, make_app])
def test_setting_without_the_extra_is_refused_at_the_start(
    settings: Settings, make: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(TracingNotInstalled, match=r"backdoor-sanitizer\[tracing\]"):
        make(settings)
