"""Idempotency keys where things go wrong or happen at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import httpx
import pytest
from pydantic import BaseModel
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from service.db.expiry import drop_expired
from service.db.session import SessionFactory, transaction
from service.db.tables import IdempotencyRecord, Job, Tenant
from service.errors import IdempotencyKeyReused, IdempotentRequestRunning
from service.idempotency import Answer, Once
from tests.builders import add_tenant
from tests.databases import every_database
from tests.service.jobs.builders import job_body

pytestmark = every_database

REMEMBERED = timedelta(hours=1)


class Body(BaseModel):
    """A body to answer with."""

    value: int


@pytest.fixture
def tenant_id(sessions: SessionFactory) -> str:
    with transaction(sessions) as session:
        return add_tenant(session).id


@pytest.fixture
def once(sessions: SessionFactory, tenant_id: str) -> Callable[[], Once]:
    """Makes what a request with the key `k` has."""
    return lambda: Once(sessions, tenant_id, "k", remembered=REMEMBERED)


def expire(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        record = session.scalars(select(IdempotencyRecord)).one()
        record.expires_at -= timedelta(days=1)


def test_second_is_told_while_the_first_runs(once: Callable[[], Once]) -> None:
    once().begin()
    with pytest.raises(IdempotentRequestRunning):
        once().begin()


def test_claim_of_a_request_that_died_is_free_after_a_while(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    once().begin()
    expire(sessions)
    once().begin()


def test_request_that_lost_its_claim_is_undone(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    slow, quick = once(), once()
    slow.begin()
    expire(sessions)
    quick.begin()

    def finish_slowly() -> None:
        with transaction(sessions) as session:
            session.add(Tenant(name="half done"))
            slow.complete(session, "f", Answer(201, Body(value=1)))

    with pytest.raises(IdempotentRequestRunning):
        finish_slowly()
    with transaction(sessions) as session:
        assert session.query(Tenant).filter_by(name="half done").count() == 0
        quick.complete(session, "f", Answer(201, Body(value=2)))
    third = once()
    third.begin()
    earlier = third.earlier("f")
    assert earlier is not None
    assert (earlier.status, earlier.body) == (201, {"value": 2})


def test_request_gives_back_no_claim_but_its_own(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    slow, quick = once(), once()
    slow.begin()
    expire(sessions)
    quick.begin()
    slow.release()
    with pytest.raises(IdempotentRequestRunning):
        once().begin()


def test_answer_stays_when_what_comes_after_its_commit_fails(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    """As of an upload whose client hangs up while a thread commits."""
    first, again = once(), once()
    first.begin()
    with transaction(sessions) as session:
        first.complete(session, "f", Answer(201, Body(value=1)))
    first.release()
    again.begin()
    earlier = again.earlier("f")
    assert earlier is not None
    assert earlier.body == {"value": 1}


def test_answer_is_forgotten_when_its_time_is_over(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    first = once()
    first.begin()
    with transaction(sessions) as session:
        first.complete(session, "f", Answer(201, Body(value=1)))
    expire(sessions)
    again = once()
    again.begin()
    assert again.earlier("f") is None


def test_other_payload_is_refused(once: Callable[[], Once], sessions: SessionFactory) -> None:
    first, second = once(), once()
    first.begin()
    with transaction(sessions) as session:
        first.complete(session, "f", Answer(201, Body(value=1)))
    second.begin()
    with pytest.raises(IdempotencyKeyReused):
        second.earlier("g")


def test_failed_work_leaves_no_trace(once: Callable[[], Once], sessions: SessionFactory) -> None:
    def work_in(session: Session) -> Callable[[], Answer]:
        def work() -> Answer:
            session.add(Tenant(name="half done"))
            session.flush()
            raise RuntimeError("no")

        return work

    with pytest.raises(RuntimeError), sessions() as session, session.begin():
        once().run(session, "f", work_in(session))
    with transaction(sessions) as session:
        assert session.query(Tenant).filter_by(name="half done").count() == 0
        assert session.query(IdempotencyRecord).count() == 0


def test_key_is_given_back_if_the_commit_fails(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    def fail(_session: Session) -> None:
        raise RuntimeError("the disk is full")

    def run() -> None:
        with transaction(sessions) as session:
            event.listen(session, "before_commit", fail)
            once().run(session, "f", partial(Answer, 201, Body(value=1)))

    with pytest.raises(RuntimeError, match="disk"):
        run()
    again = once()
    again.begin()
    assert again.earlier("f") is None


def test_without_a_key_nothing_is_remembered(sessions: SessionFactory, tenant_id: str) -> None:
    for value in (1, 2):
        with transaction(sessions) as session:
            work = partial(Answer, 201, Body(value=value))
            once = Once(sessions, tenant_id, None, remembered=REMEMBERED)
            answer = once.run(session, "f", work)
        assert answer.body == f'{{"value":{value}}}'.encode()


def test_of_many_requests_at_once_one_makes_the_job(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    body, headers = job_body(client), {"Idempotency-Key": "once"}
    barrier = threading.Barrier(6)

    def submit() -> httpx.Response:
        barrier.wait()
        return client.post("/v1/jobs", json=body, headers=headers)

    with ThreadPoolExecutor(6) as pool:
        answers = [future.result() for future in [pool.submit(submit) for _ in range(6)]]
    assert {answer.status_code for answer in answers} <= {202, 409}
    made = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    assert len(made) == 1
    with transaction(sessions) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_claim_that_ran_out_and_that_nobody_took_is_as_good_as_ever(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    """The reconciler drops what has run out, unfinished claims of long uploads among them."""
    slow = once()
    slow.begin()
    expire(sessions)
    with transaction(sessions) as session:
        assert drop_expired(session) == 1

    with transaction(sessions) as session:
        slow.complete(session, "f", Answer(201, Body(value=1)))

    again = once()
    again.begin()
    stored = again.earlier("f")
    assert stored is not None
    assert stored.body == {"value": 1}


@pytest.mark.anyio
async def test_claim_is_renewed_while_bytes_come(
    once: Callable[[], Once], sessions: SessionFactory
) -> None:
    slow = once()
    slow.begin(lasts=timedelta(seconds=30))
    with transaction(sessions) as session:
        claimed_until = session.scalars(select(IdempotencyRecord.expires_at)).one()

    await slow.keep()  # too early
    with transaction(sessions) as session:
        assert session.scalars(select(IdempotencyRecord.expires_at)).one() == claimed_until
    slow._renewed_at = claimed_until - timedelta(seconds=41)
    await slow.keep()
    with transaction(sessions) as session:
        assert session.scalars(select(IdempotencyRecord.expires_at)).one() > claimed_until

    expire(sessions)  # no byte comes any more
    once().begin()
    with pytest.raises(IdempotentRequestRunning), transaction(sessions) as session:
        slow.complete(session, "f", Answer(201, Body(value=1)))
