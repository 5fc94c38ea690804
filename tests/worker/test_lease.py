"""A lease lasts as long as its worker does."""

import threading
from datetime import datetime
from types import SimpleNamespace

import pytest

from service.db.session import SessionFactory, transaction
from service.db.tables import Job
from service.jobs import service as jobs
from service.jobs.service import Claim
from tests.builders import add_job
from tests.worker.faulty_database import FaultyDatabase
from worker.lease import LeaseKeeper


def _claim(sessions: SessionFactory) -> Claim:
    with transaction(sessions) as session:
        claim = jobs.claim(session, add_job(session).id, "w1", 60)
    assert claim is not None
    return claim


def _ends_at(sessions: SessionFactory, claim: Claim) -> datetime:
    with transaction(sessions) as session:
        ends_at = session.get_one(Job, claim.job_id).lease_expires_at
    assert ends_at is not None
    return ends_at


def test_lease_is_renewed_again_and_again(sessions: SessionFactory) -> None:
    claim = _claim(sessions)
    ends_at = _ends_at(sessions, claim)
    pause = threading.Event()
    with LeaseKeeper(sessions, claim, heartbeat_seconds=0.05):
        for _ in range(2):
            for _ in range(600):
                if _ends_at(sessions, claim) > ends_at:
                    break
                pause.wait(0.05)
            assert _ends_at(sessions, claim) > ends_at
            ends_at = _ends_at(sessions, claim)


def test_lease_is_renewed_when_it_is_due_or_as_soon_as_the_database_is_back(
    sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("worker.lease.time", SimpleNamespace(monotonic=lambda: now))
    claim = _claim(sessions)
    database = FaultyDatabase(sessions)
    keeper = LeaseKeeper(database.sessions, claim, heartbeat_seconds=10)
    database.cut(lambda: now in (20.0, 21.0))
    renewed_at = []
    for now in (1.0, 9.0, 10.0, 11.0, 19.0, 20.0, 21.0, 22.0):
        before = _ends_at(sessions, claim)
        keeper._keep()
        if _ends_at(sessions, claim) > before:
            renewed_at.append(now)
    assert renewed_at == [10.0, 22.0]
    assert database.refused == 2
    assert not keeper.lost
