"""What tenants and workers do at the same time: who waits for whom, and sees what of it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.datasets import service as datasets
from service.datasets.schemas import DatasetChange
from service.db.session import SessionFactory, transaction
from service.db.tables import JobStatus
from service.jobs import service as jobs
from service.jobs import submission
from service.jobs.repository import JobRepository
from service.jobs.schemas import JobRequest
from service.models import service as models
from service.models.schemas import ModelChange
from tests.builders import add_dataset, add_job, add_model, add_tenant
from tests.databases import on_postgresql
from tests.waiting import wait_until, waits_for_a_lock

Act = Callable[[Session, str, JobRequest], object]


def _submit(session: Session, tenant_id: str, request: JobRequest) -> object:
    return submission.check(session, tenant_id, request, max_queued=10)


ACTS: dict[str, Act] = {
    "submit": _submit,
    "delete_model": lambda s, tenant, request: models.delete(s, tenant, request.model_id),
    "change_model": lambda s, tenant, request: models.change(
        s, tenant, request.model_id, ModelChange(mean=[0.5])
    ),
    "delete_data": lambda s, tenant, request: datasets.delete(
        s, tenant, request.clean_data.dataset_id
    ),
    "change_data": lambda s, tenant, request: datasets.change(
        s, tenant, request.clean_data.dataset_id, DatasetChange(class_names=["a", "b"])
    ),
}


def _add_rows(sessions: SessionFactory, tenant: str) -> tuple[str, JobRequest]:
    with transaction(sessions) as session:
        owner = add_tenant(session, tenant)
        model, clean = add_model(session, owner), add_dataset(session, owner)
        body = {"model_id": model.id, "clean_data": {"dataset_id": clean.id}}
        return owner.id, JobRequest.model_validate(body)


def _impatient(session: Session) -> Session:
    session.execute(text("SET LOCAL lock_timeout = '50ms'"))
    return session


@on_postgresql
@pytest.mark.parametrize("act", ACTS)
def test_while_a_job_is_submitted_what_it_uses_stays_as_it_is(
    sessions: SessionFactory, act: str
) -> None:
    acme, request = _add_rows(sessions, "acme")
    globex, another = _add_rows(sessions, "globex")
    with transaction(sessions) as first:
        _submit(first, acme, request)
        with pytest.raises(OperationalError, match="lock"), transaction(sessions) as second:
            ACTS[act](_impatient(second), acme, request)
        with transaction(sessions) as second:  # other tenants do not wait
            ACTS[act](_impatient(second), globex, another)
    with transaction(sessions) as second:
        ACTS[act](_impatient(second), acme, request)


@on_postgresql
def test_job_that_is_repeated_cannot_be_deleted_meanwhile(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job_id = add_job(session).id
        jobs.request_cancel(session, job_id)
    with transaction(sessions) as first:
        assert JobRepository.from_session(first).hold(job_id)
        with pytest.raises(OperationalError, match="lock"), transaction(sessions) as second:
            jobs.delete(_impatient(second), job_id)
    with transaction(sessions) as second:
        jobs.delete(second, job_id)
        assert not JobRepository.from_session(second).hold(job_id)


@on_postgresql
def test_cancel_that_comes_while_a_worker_takes_the_job_asks_that_worker(
    sessions: SessionFactory,
) -> None:
    with transaction(sessions) as session:
        job_id = add_job(session).id

    def cancel() -> str:
        with transaction(sessions) as session:
            session.execute(text("SET LOCAL lock_timeout = '60s'"))
            return jobs.request_cancel(session, job_id).status

    with ThreadPoolExecutor(1) as pool:
        with transaction(sessions) as session:
            assert jobs.claim(session, job_id, "w1", 60) is not None
            cancelled = pool.submit(cancel)
            # Shorter than a transaction may stand still.
            wait_until(lambda: waits_for_a_lock(sessions), 25)
        assert cancelled.result() == JobStatus.CANCELLING
