"""Health over HTTP."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import anyio.to_thread
import httpx
import pytest
from anyio import CapacityLimiter
from anyio.from_thread import BlockingPortal
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from service.db.base import utc_now
from service.db.session import SessionFactory, transaction
from service.db.tables import WorkerRecord
from service.health.endpoints import CHECK_SECONDS
from service.services import HEALTH_THREADS
from service.settings import Settings
from tests.databases import every_database
from tests.service.jobs.builders import make_job

UP = [
    {"name": "database", "state": "up", "required": True, "detail": None},
    {"name": "broker", "state": "up", "required": True, "detail": None},
    {"name": "store", "state": "up", "required": True, "detail": None},
]
NO_WORKER = {
    "name": "workers",
    "state": "down",
    "required": False,
    "detail": "none reports; jobs wait until one does",
}


def test_process_that_answers_is_healthy(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"object": "health", "status": "ok"})


@pytest.fixture
def no_thread_left(portal: BlockingPortal) -> Iterator[None]:
    """All threads that requests have wait for something."""
    limiter = portal.call(_limiter_of_requests)
    over = threading.Event()
    waiting = [
        portal.start_task_soon(_wait_in_a_thread, over) for _ in range(int(limiter.total_tokens))
    ]
    while limiter.available_tokens:
        portal.call(anyio.sleep, 0)
    try:
        yield
    finally:
        over.set()
        for each in waiting:
            each.result()


async def _wait_in_a_thread(over: threading.Event) -> None:
    await anyio.to_thread.run_sync(over.wait)


async def _limiter_of_requests() -> CapacityLimiter:
    return anyio.to_thread.current_default_thread_limiter()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.usefixtures("no_thread_left")
def test_health_is_told_while_all_threads_of_requests_wait(
    anonymous: httpx.Client, path: str
) -> None:
    pool = ThreadPoolExecutor(1)
    try:
        assert pool.submit(anonymous.get, path).result(timeout=60).status_code == 200
    finally:
        pool.shutdown(wait=False)


@every_database
def test_service_is_ready_without_workers(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"object": "readiness", "status": "ready", "components": [*UP, NO_WORKER]},
    )


def test_workers_that_report_are_counted(anonymous: httpx.Client, sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        session.add(
            WorkerRecord(id="w", hostname="h", device="cpu", slots=1, heartbeat_at=utc_now())
        )
    assert anonymous.get("/readyz").json()["components"][3] == {
        "name": "workers",
        "state": "up",
        "required": False,
        "detail": "1 report",
    }


def _details(answer: httpx.Response) -> dict[str, str | None]:
    return {part["name"]: part["detail"] for part in answer.json()["components"]}


class TestDatabaseHangs:
    """Something listens where PostgreSQL should be, and never answers."""

    DETAILS: ClassVar = {
        "database": "no answer in 3 s",
        "broker": None,
        "store": None,
        "workers": "no answer in 3 s",
    }

    @pytest.fixture
    def settings(self, with_hanging_database: Settings) -> Settings:
        return with_hanging_database

    def test_readiness_says_so_in_time(self, anonymous: httpx.Client) -> None:
        began = time.monotonic()
        answer = anonymous.get("/readyz")
        assert time.monotonic() - began < 2 * CHECK_SECONDS
        assert (answer.status_code, _details(answer)) == (503, self.DETAILS)

    def test_who_asks_often_still_learns_that_the_store_is_up(
        self, anonymous: httpx.Client
    ) -> None:
        often = 2 * HEALTH_THREADS
        with ThreadPoolExecutor(often) as pool:
            answers = list(pool.map(anonymous.get, ["/readyz"] * often))
        assert [_details(answer)["store"] for answer in answers] == [None] * often


class TestBrokerDown:
    """Nothing listens where the broker should be."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})

    def test_service_is_unready_and_names_the_broker(self, anonymous: httpx.Client) -> None:
        answer = anonymous.get("/readyz")
        down = {
            "name": "broker",
            "state": "down",
            "required": True,
            "detail": "does not answer (ConnectionError)",
        }
        assert (answer.status_code, answer.json()) == (
            503,
            {
                "object": "readiness",
                "status": "unready",
                "components": [UP[0], down, UP[2], NO_WORKER],
            },
        )


def test_service_without_its_store_is_unready(
    anonymous: httpx.Client, settings: Settings, tmp_path: Path
) -> None:
    Path(settings.storage_url.removeprefix("file:")).rmdir()
    (tmp_path / "store").write_text("a file where the folder should be")
    answer = anonymous.get("/readyz")
    states = {c["name"]: c["state"] for c in answer.json()["components"]}
    assert (answer.status_code, states["store"]) == (503, "down")


@every_database
def test_requests_and_jobs_are_counted(client: httpx.Client) -> None:
    make_job(client)
    client.get("/v1/models/model_x")
    client.get("/nowhere/at/all")
    families = {
        family.name: family
        for family in text_string_to_metric_families(client.get("/metrics").text)
    }
    requests = {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for s in families["sanitizer_http_requests"].samples
        if s.name.endswith("_total")
    }
    assert requests == {
        ("POST", "/v1/models", "201"): 1,
        ("POST", "/v1/datasets", "201"): 1,
        ("POST", "/v1/jobs", "202"): 1,
        ("GET", "/v1/models/{model_id}", "404"): 1,
        ("GET", "unmatched", "404"): 1,
    }
    jobs = {s.labels["status"]: s.value for s in families["sanitizer_jobs"].samples}
    assert jobs == {
        "queued": 1,
        "running": 0,
        "cancelling": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
    }
    assert "sanitizer_http_request_seconds" in families
