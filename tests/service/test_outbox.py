"""What is done after the commit, and what becomes of the request if it fails."""

from dataclasses import replace

import pytest
from fastapi import FastAPI
from sqlalchemy.exc import InterfaceError, TimeoutError

from service import outbox
from service.db.session import transaction
from service.db.tables import Job
from service.queue import count_messages
from service.services import Services
from tests.builders import add_job
from tests.worker.faulty_database import FaultyDatabase
from tests.worker.faulty_store import FaultyStore


@pytest.fixture
def services(app: FastAPI) -> Services:
    """Those of the app."""
    services: Services = app.state.services
    return services


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("all connections are in use"),
        InterfaceError("BEGIN", {}, Exception("the connection is closed")),
        RuntimeError("something unforeseen"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_job_that_is_stored_is_accepted_whatever_becomes_of_its_message(
    services: Services, error: Exception
) -> None:
    database = FaultyDatabase(services.write_sessions)
    database.error = error
    with transaction(services.write_sessions) as session:
        job_id = add_job(session).id
        outbox.send_job(session, job_id, None)
    database.cut()
    outbox.deliver(replace(services, write_sessions=database.sessions), session)
    assert database.refused == 1
    assert count_messages(services.queue)[None] == 1
    with transaction(services.write_sessions) as session:
        assert session.get_one(Job, job_id).sent_at is None


def test_store_that_is_away_is_asked_for_one_of_the_files_alone(services: Services) -> None:
    store = FaultyStore(services.store)
    store.cut()
    with transaction(services.write_sessions) as session:
        for number in range(5):
            outbox.remove_file(session, f"jobs/artifact_{number}")
    outbox.deliver(replace(services, store=store), session)
    assert store.refused == ["jobs/artifact_0"]
