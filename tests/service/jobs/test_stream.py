"""The events of a job as a stream, over a real connection."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import event, update
from sqlalchemy.pool import QueuePool

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent
from service.db.base import utc_now
from service.db.session import SessionFactory, transaction
from service.db.tables import ApiKey
from service.jobs import service as jobs
from service.jobs import stream
from service.keys.service import Caller
from service.queue import publish_wakeup
from service.settings import Settings
from tests.builders import make_progress_event, make_stage_event
from tests.databases import on_postgresql
from tests.service.jobs.builders import make_job, start_job

STREAM = {"Accept": "text/event-stream"}


class Events:
    """Reads server-sent events out of an answer."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()
        self.comments: list[str] = []

    def __iter__(self) -> Iterator[dict[str, str]]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if "data" in fields:
                    yield fields
                fields = {}
            elif line.startswith(":"):
                self.comments.append(line[1:].strip())
            else:
                name, _, value = line.partition(": ")
                fields[name] = value


@contextmanager
def streamed(
    remote: httpx.Client, job: dict[str, Any], **headers: str
) -> Iterator[Iterator[dict[str, str]]]:
    """The events of a job as they come."""
    with remote.stream("GET", job["links"]["events"], headers=STREAM | headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield iter(Events(answer))


def test_stream_tells_what_was_and_what_comes_and_ends_with_the_job(
    remote: httpx.Client, sessions: SessionFactory
) -> None:
    job = make_job(remote)
    claim = start_job(sessions, job["id"])
    with streamed(remote, job) as events:
        assert [next(events)["event"] for _ in range(2)] == ["status", "status"]
        with transaction(sessions) as session:
            jobs.append_events(session, claim, [make_stage_event(), make_progress_event(0.5)])
        third = next(events)
        assert (third["id"], third["event"]) == ("3", "stage")
        remote.post(job["links"]["cancel"])
        with transaction(sessions) as session:
            jobs.finish_cancelled(session, claim)
        rest = [(event["id"], event["event"]) for event in events]
    assert rest == [("4", "progress"), ("5", "status"), ("6", "status")]


def test_streamed_data_is_the_object_of_the_page(remote: httpx.Client) -> None:
    job = make_job(remote)
    remote.post(job["links"]["cancel"])
    with streamed(remote, job) as events:
        sent = list(events)
    page = remote.get(job["links"]["events"]).json()["data"]
    assert [httpx.Response(200, content=event["data"]).json() for event in sent] == page


def test_stream_goes_on_behind_the_last_event_id(
    remote: httpx.Client, sessions: SessionFactory
) -> None:
    job = make_job(remote)
    start_job(sessions, job["id"])
    remote.post(job["links"]["cancel"])
    with streamed(remote, job, **{"Last-Event-ID": "2"}) as events:
        third = next(events)
    assert (third["id"], third["event"]) == ("3", "status")


def test_wrong_last_event_id_is_refused(remote: httpx.Client) -> None:
    job = make_job(remote)
    headers = STREAM | {"Last-Event-ID": "yesterday"}
    answer = remote.get(job["links"]["events"], headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_wake_up_brings_an_event_before_the_next_poll(
    remote: httpx.Client,
    sessions: SessionFactory,
    app: FastAPI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.jobs.stream.POLL_SECONDS", 60.0)
    job = make_job(remote)
    claim = start_job(sessions, job["id"])
    with streamed(remote, job) as events:
        next(events), next(events)

        def tell() -> None:
            with transaction(sessions) as session:
                jobs.append_events(session, claim, [make_stage_event()])
            publish_wakeup(app.state.services.queue, job["id"])

        threading.Timer(0.1, tell).start()
        began = time.monotonic()
        assert next(events)["event"] == "stage"
    assert time.monotonic() - began < 30


class TestBrokerDown:
    """Nothing listens where the broker should be."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})

    def test_events_come_all_the_same(self, remote: httpx.Client, sessions: SessionFactory) -> None:
        job = make_job(remote)
        claim = start_job(sessions, job["id"])
        with streamed(remote, job) as events:
            next(events), next(events)
            with transaction(sessions) as session:
                jobs.append_events(session, claim, [make_stage_event()])
            assert next(events)["event"] == "stage"


@pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
def test_stream_ends_with_its_key_and_tells_no_further_event(
    remote: httpx.Client,
    sessions: SessionFactory,
    column: str,
) -> None:
    job = make_job(remote)
    claim = start_job(sessions, job["id"])
    with streamed(remote, job) as events:
        next(events), next(events)
        with transaction(sessions) as session:
            session.execute(update(ApiKey).values({column: utc_now()}))
            jobs.append_events(session, claim, [make_stage_event()])
        assert list(events) == []
    assert remote.get(job["links"]["events"], headers=STREAM).status_code == 401


def test_stream_of_an_ended_job_tells_all_of_it_however_much_that_is(
    remote: httpx.Client, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.stream.BATCH", 2)
    job = make_job(remote)
    claim = start_job(sessions, job["id"])
    with transaction(sessions) as session:
        jobs.append_events(session, claim, [make_stage_event()] * 4)
        jobs.fail(session, claim, ErrorEvent(code="c", fault=Fault.INPUT, message="No."))
    with streamed(remote, job) as events:
        told = [event["event"] for event in events]
    assert told == ["status", "status", *["stage"] * 4, "error", "status"]


def test_stream_ends_when_its_job_is_deleted(
    client: httpx.Client, sessions: SessionFactory, app: FastAPI
) -> None:
    job = make_job(client)
    with transaction(sessions) as session:
        key = session.query(ApiKey).one()
    read = stream._reader(app.state.services, Caller(key.tenant_id, key.id, frozenset()), job["id"])
    assert not read(0).over
    client.post(job["links"]["cancel"])
    client.delete(job["links"]["self"])
    assert (read(0).events, read(0).over) == ([], True)


@on_postgresql
def test_what_comes_while_the_stream_reads_is_not_missed(
    client: httpx.Client, sessions: SessionFactory, app: FastAPI
) -> None:
    """The job ends right behind the look for new events."""
    job = make_job(client)
    claim = start_job(sessions, job["id"])
    with transaction(sessions) as session:
        key = session.query(ApiKey).one()
    caller = Caller(key.tenant_id, key.id, frozenset())
    read = stream._reader(app.state.services, caller, job["id"])
    ended: list[bool] = []

    def end(*execution: Any) -> None:
        if "FROM job_events" in execution[2] and not ended:
            ended.append(True)
            with transaction(sessions) as session:
                jobs.fail(session, claim, ErrorEvent(code="c", fault=Fault.INPUT, message="No."))

    engine = app.state.services.sessions.kw["bind"]
    event.listen(engine, "after_cursor_execute", end)
    first = read(0)
    event.remove(engine, "after_cursor_execute", end)
    assert (first.over, ended) == (False, [True])
    second = read(first.events[-1].sequence)
    assert second.over
    told = first.events + second.events
    assert [each.type for each in told] == ["status", "status", "error", "status"]
    assert told[-1].data["status"] == "failed"


def test_open_stream_holds_no_connection_of_the_database(
    remote: httpx.Client, app: FastAPI
) -> None:
    job = make_job(remote)
    pool = app.state.services.sessions.kw["bind"].pool
    assert isinstance(pool, QueuePool)
    with streamed(remote, job) as events:
        next(events)
        deadline = time.monotonic() + 30
        while pool.checkedout() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.checkedout() == 0


def test_stream_ends_when_its_client_has_gone(
    remote: httpx.Client, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.stream.POLL_SECONDS", 0.05)
    job = make_job(remote)
    gone = threading.Event()
    inner = app.state.services.sessions
    reads: list[float] = []

    def count(*_: object) -> None:
        reads.append(time.monotonic())

    from sqlalchemy import event

    event.listen(inner.kw["bind"], "checkout", count)
    with streamed(remote, job) as events:
        next(events)
    gone.wait(0.5)
    reads.clear()
    gone.wait(0.5)
    assert reads == []
