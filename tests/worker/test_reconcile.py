"""Repairs, over a real broker and both databases."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import OperationalError

from service import queue
from service.cli.stack import environment_of
from service.db.base import utc_now
from service.db.session import (
    SessionFactory,
    for_writing,
    make_engine,
    make_session_factory,
    transaction,
)
from service.db.tables import IdempotencyRecord, Job, JobStatus, WorkerRecord
from service.jobs import service as jobs
from service.settings import Settings
from tests.builders import add_job, add_tenant, make_stage_event
from tests.databases import every_database, on_postgresql
from tests.worker.faulty_database import FaultyDatabase
from tests.worker.faulty_network import FaultyNetwork
from worker.reconcile import Reconciler


def _reconciler(settings: Settings, sessions: SessionFactory) -> Reconciler:
    return Reconciler(settings, sessions, queue.make_producer(settings))


def _add_jobs(sessions: SessionFactory, count: int = 1) -> list[str]:
    with transaction(sessions) as session:
        return [add_job(session).id for _ in range(count)]


def _messages(settings: Settings) -> int:
    return sum(queue.count_messages(queue.make_producer(settings)).values())


def _lapse(sessions: SessionFactory, job_id: str) -> None:
    with transaction(sessions) as session:
        assert jobs.claim(session, job_id, "w1", lease_seconds=-1) is not None


@every_database
def test_job_that_was_never_sent_is_sent_once(settings: Settings, sessions: SessionFactory) -> None:
    _add_jobs(sessions, 2)
    reconciler = _reconciler(settings, sessions)
    reconciler.run()
    reconciler.run()
    assert _messages(settings) == 2


def test_job_whose_message_is_old_and_gone_is_sent_again(
    settings: Settings, sessions: SessionFactory
) -> None:
    [job_id] = _add_jobs(sessions)
    with transaction(sessions) as session:
        jobs.mark_sent(session, job_id)
    quick = settings.model_copy(update={"resend_seconds": 0.001})
    time.sleep(0.01)
    _reconciler(quick, sessions).run()
    assert _messages(settings) == 1


def test_queue_does_not_grow_while_no_worker_takes_from_it(
    settings: Settings, sessions: SessionFactory
) -> None:
    _add_jobs(sessions, 3)
    reconciler = _reconciler(settings.model_copy(update={"resend_seconds": 1e-6}), sessions)
    for _ in range(4):
        reconciler.run()
    assert _messages(settings) == 3


def test_lost_message_is_sent_again_whatever_lies_in_the_queue_of_another_device(
    settings: Settings, sessions: SessionFactory
) -> None:
    reconciler = _reconciler(settings.model_copy(update={"resend_seconds": 1e-6}), sessions)
    with transaction(sessions) as session:
        for_cuda = [add_job(session, device="cuda").id for _ in range(3)]
    reconciler.run()
    with transaction(sessions) as session:
        for job_id in for_cuda:
            jobs.request_cancel(session, job_id)
    [lost] = _add_jobs(sessions)
    with transaction(sessions) as session:
        jobs.mark_sent(session, lost)
    reconciler.run()
    assert queue.count_messages(queue.make_producer(settings)) == {None: 1, "cpu": 0, "cuda": 3}


def test_job_is_sent_once_the_broker_is_back(settings: Settings, sessions: SessionFactory) -> None:
    [job_id] = _add_jobs(sessions)
    down = settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})
    _reconciler(down, sessions).run()
    with transaction(sessions) as session:
        assert session.get_one(Job, job_id).sent_at is None
    _reconciler(settings, sessions).run()
    assert _messages(settings) == 1


def test_jobs_whose_messages_the_broker_did_not_take_are_sent_once_it_is_back(
    settings: Settings, sessions: SessionFactory
) -> None:
    """It goes away after the jobs were marked as sent."""
    job_ids = _add_jobs(sessions, 3)
    port = make_url(settings.broker_url.get_secret_value()).port
    assert port is not None
    with FaultyNetwork(port) as network:
        url = SecretStr(f"redis://127.0.0.1:{network.port}/0")
        own = for_writing(sessions)
        event.listen(own, "after_commit", lambda _: network.cut())
        reconciler = _reconciler(settings.model_copy(update={"broker_url": url}), own)
        with pytest.raises(queue.BrokerUnavailable):
            reconciler.resend()
    with transaction(sessions) as session:
        assert [session.get_one(Job, job_id).sent_at for job_id in job_ids] == [None] * 3
    _reconciler(settings, sessions).run()
    assert _messages(settings) == 3


@every_database
def test_jobs_of_silent_workers_are_queued_and_sent(
    settings: Settings, sessions: SessionFactory
) -> None:
    job_ids = _add_jobs(sessions, 3)
    for job_id in job_ids:
        _lapse(sessions, job_id)
    _reconciler(settings, sessions).run()
    with transaction(sessions) as session:
        statuses = [session.get_one(Job, job_id).status for job_id in job_ids]
    assert statuses == [JobStatus.QUEUED] * 3
    assert _messages(settings) == 3


@on_postgresql
def test_row_that_a_cut_off_host_has_locked_does_not_keep_others_from_being_taken_back(
    settings: Settings, sessions: SessionFactory
) -> None:
    locked, free = _add_jobs(sessions, 2)
    with transaction(sessions) as session:
        claim = jobs.claim(session, locked, "w1", lease_seconds=-1)
    assert claim is not None
    _lapse(sessions, free)
    with transaction(sessions) as cut_off:
        jobs.append_events(cut_off, claim, [make_stage_event()])
        _reconciler(settings, sessions).take_back()
        with transaction(sessions) as session:
            assert session.get_one(Job, free).status == JobStatus.QUEUED
    _reconciler(settings, sessions).take_back()
    with transaction(sessions) as session:
        assert session.get_one(Job, locked).status == JobStatus.QUEUED


class _Refusal(Exception):
    """As PostgreSQL's driver raises it."""

    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    "sqlstate",
    [None, "08006", "53300", "57P03"],
    ids=["no_connection", "broken", "no_connection_free", "starting_up"],
)
def test_leases_that_ran_out_while_the_database_was_away_may_be_renewed_first(
    settings: Settings,
    sessions: SessionFactory,
    monkeypatch: pytest.MonkeyPatch,
    sqlstate: str | None,
) -> None:
    [job_id] = _add_jobs(sessions)
    _lapse(sessions, job_id)
    database = FaultyDatabase(sessions)
    database.error = OperationalError("BEGIN", {}, _Refusal(sqlstate))
    reconciler = _reconciler(settings, database.sessions)

    def status_after_a_round() -> str:
        reconciler.run()
        with transaction(sessions) as session:
            return session.get_one(Job, job_id).status

    database.cut()
    assert status_after_a_round() == JobStatus.RUNNING
    database.mend()
    assert status_after_a_round() == JobStatus.RUNNING
    monkeypatch.setattr(reconciler, "_away_at", time.monotonic() - settings.lease_seconds)
    assert status_after_a_round() == JobStatus.QUEUED


@every_database
def test_lock_that_somebody_else_holds_delays_no_other_round(
    settings: Settings, sessions: SessionFactory, database_url: str
) -> None:
    [job_id] = _add_jobs(sessions)
    _lapse(sessions, job_id)
    is_postgresql = database_url.startswith("postgresql")
    more = f"{'&' if '?' in database_url else '?'}options=-c lock_timeout=50ms"
    engine = make_engine(database_url + more if is_postgresql else database_url)
    if not is_postgresql:
        event.listen(
            engine, "connect", lambda raw, _: raw.execute("PRAGMA busy_timeout = 50").close()
        )
    reconciler = _reconciler(settings, for_writing(make_session_factory(engine)))
    with transaction(sessions) as other:
        other.execute(text("LOCK TABLE jobs" if is_postgresql else "SELECT 1"))
        with pytest.raises(OperationalError, match="lock"):
            reconciler.take_back()
    reconciler.take_back()
    engine.dispose()
    with transaction(sessions) as session:
        assert session.get_one(Job, job_id).status == JobStatus.QUEUED


def test_leases_are_taken_back_without_a_broker(
    settings: Settings, sessions: SessionFactory
) -> None:
    [job_id] = _add_jobs(sessions)
    _lapse(sessions, job_id)
    down = settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})
    _reconciler(down, sessions).run()
    with transaction(sessions) as session:
        assert session.get_one(Job, job_id).status == JobStatus.QUEUED


@every_database
def test_rows_that_have_had_their_time_are_deleted(
    settings: Settings, sessions: SessionFactory
) -> None:
    now = utc_now()
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        for key, age in (("old", 1), ("new", -1)):
            session.add(
                IdempotencyRecord(
                    tenant_id=tenant.id,
                    key=key,
                    fingerprint="f",
                    expires_at=now - timedelta(hours=age),
                )
            )
            session.add(
                WorkerRecord(
                    id=key,
                    hostname="h",
                    device="cpu",
                    slots=1,
                    heartbeat_at=now - timedelta(days=2 * max(age, 0)),
                )
            )
    _reconciler(settings, sessions).run()
    with transaction(sessions) as session:
        assert [record.key for record in session.query(IdempotencyRecord)] == ["new"]
        assert [record.id for record in session.query(WorkerRecord)] == ["new"]


def test_reconciler_runs_alone_tells_that_it_lives_and_ends_when_asked(
    settings: Settings, sessions: SessionFactory, tmp_path: Path
) -> None:
    [job_id] = _add_jobs(sessions)
    _lapse(sessions, job_id)
    alive = tmp_path / "alive"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "worker.reconcile"],
        env={**os.environ, **environment_of(settings), "SANITIZER_ALIVE_FILE": str(alive)},
    )
    try:
        deadline = time.monotonic() + 60
        while _messages(settings) == 0 or not alive.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("repair", ["take_back", "resend", "drop_expired"])
def test_repair_that_fails_does_not_keep_the_others_from_being_done(
    settings: Settings,
    sessions: SessionFactory,
    repair: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def note(name: str) -> None:
        done.append(name)
        if name == repair:
            raise RuntimeError(name)

    reconciler = _reconciler(settings, sessions)
    for name in ("take_back", "resend", "drop_expired"):
        work = lambda name=name: note(name)  # noqa: E731  # a name of its own for each
        work.__name__ = name
        monkeypatch.setattr(reconciler, name, work)
    reconciler.run()
    assert done == ["take_back", "resend", "drop_expired"]
