"""What is read where there are many rows: those that are asked for, not all that ever were."""

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db.session import SessionFactory, make_engine, make_session_factory, transaction
from service.jobs.repository import JobRepository
from tests.builders import add_job
from tests.databases import on_postgresql

ENDED = 3000
FEW = 50
"""Rows that may be read to find a handful."""
REPEATS = 12
"""The server keeps a plan from the tenth time on."""


@pytest.fixture
def many_jobs(sessions: SessionFactory) -> str:
    """Many jobs have ended, and one waits; its id."""
    with transaction(sessions) as session:
        job = add_job(session)
        columns = ", ".join(
            column.name for column in job.__table__.columns if column.name not in ("id", "status")
        )
        session.execute(
            text(
                f"INSERT INTO jobs (id, status, {columns}) SELECT 'job_0' || (100000 + n), "
                f"'succeeded', {columns} FROM jobs, generate_series(1, {ENDED}) n"
            )
        )
    _analyze(sessions)
    return job.id


def _analyze(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        session.execute(text("ANALYZE"))


def _rows_read(sessions: SessionFactory, work: Callable[[Session], object]) -> int:
    """How many rows of all tables a piece of work reads, once it was done some times before."""
    engine = make_engine(sessions.kw["bind"].url.render_as_string(hide_password=False))
    try:
        with engine.connect() as connection:
            on_one_connection = make_session_factory(engine)
            for _ in range(REPEATS):
                with on_one_connection(bind=connection) as session, session.begin():
                    work(session)
                    read = session.scalar(
                        text(
                            "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) "
                            "FROM pg_stat_xact_user_tables"
                        )
                    )
    finally:
        engine.dispose()
    return int(read or 0)


@on_postgresql
def test_job_that_waits_is_found_without_a_look_at_those_that_have_ended(
    sessions: SessionFactory, many_jobs: str
) -> None:
    found = []

    def look(session: Session) -> None:
        repository = JobRepository.from_session(session)
        found.append(repository.first_queued(None, now=repository.now()))

    assert _rows_read(sessions, look) < FEW
    assert set(found) == {many_jobs}
