"""What is read where there are many rows: those that are asked for, not all that ever were."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, inspect, select, text
from sqlalchemy.orm import Session

from service.db.base import first_id
from service.db.session import SessionFactory, make_engine, make_session_factory, transaction
from service.db.tables import Dataset, Job, Model
from service.jobs.repository import JobFilter, JobRepository, RequestHead
from tests.builders import add_job, at
from tests.databases import on_postgresql
from worker.collect import find_named

ENDED = 3000
FEW = 50
"""Rows that may be read to find a handful."""
REPEATS = 12
"""The server keeps a plan from the tenth time on."""


@pytest.fixture
def many_jobs(sessions: SessionFactory) -> str:
    """Many jobs have ended and left a model and a file each, and one waits; its id."""
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
        session.execute(
            text(
                "INSERT INTO artifacts (id, job_id, name, kind, media_type, bytes, sha256, "
                "storage_key, created_at) SELECT 'artifact_' || id, id, 'model.pt', 'model', '', "
                "4, '', 'jobs/' || id || '/artifact_1', created_at FROM jobs"
            )
        )
        session.execute(
            text(
                "INSERT INTO models (id, tenant_id, name, filename, bytes, sha256, storage_key, "
                "options, metadata, source_job_id, created_at) SELECT 'model_' || job_id, "
                "tenant_id, '', '', 4, '', storage_key, '{}', '{}', job_id, jobs.created_at "
                "FROM jobs JOIN artifacts ON jobs.id = job_id"
            )
        )
    with transaction(sessions) as session:
        session.execute(text("ANALYZE"))
    return job.id


@pytest.fixture
def job_an_hour(sessions: SessionFactory) -> list[Job]:
    """A tenant's jobs, made one an hour, oldest first."""
    with transaction(sessions) as session:
        job = add_job(session)
        same = {c.key: getattr(job, c.key) for c in inspect(Job).column_attrs}
        moments = [at(0) + timedelta(hours=hour) for hour in range(ENDED)]
        # Ids are of the millisecond in which they are drawn.
        rows = [{**same, "id": first_id("job", moment), "created_at": moment} for moment in moments]
        session.delete(job)
        session.execute(insert(Job), rows)
    with transaction(sessions) as session:
        session.execute(text("ANALYZE"))
        return list(session.scalars(select(Job).order_by(Job.id)))


def _rows_read(sessions: SessionFactory, work: Callable[[Session], object]) -> int:
    """How many rows of all tables a piece of work reads, once it was done some times before."""
    engine = make_engine(sessions.kw["bind"].url.render_as_string(hide_password=False))
    on_one_connection = make_session_factory(engine)
    with engine.connect() as connection:
        for _ in range(REPEATS):
            with on_one_connection(bind=connection) as session, session.begin():
                before = _rows_read_so_far(session)
                work(session)
                read = _rows_read_so_far(session) - before
    engine.dispose()
    return read


def _rows_read_so_far(session: Session) -> int:
    counts = "sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))"
    return int(session.scalar(text(f"SELECT {counts} FROM pg_stat_xact_user_tables")) or 0)


def _parts_read_so_far(session: Session) -> int:
    """Of values that are too large for a row, in parts of 2 kB."""
    query = "SELECT sum(idx_tup_fetch) FROM pg_stat_xact_all_tables WHERE schemaname = 'pg_toast'"
    return int(session.scalar(text(query)) or 0)


@on_postgresql
@pytest.mark.parametrize("waiting", [1, 300])
def test_job_that_waits_longest_is_found_without_a_look_at_those_that_have_ended(
    sessions: SessionFactory, many_jobs: str, waiting: int
) -> None:
    with transaction(sessions) as session:
        model, clean = session.query(Model).first(), session.query(Dataset).first()
        for _ in range(waiting - 1):
            add_job(session, model=model, clean=clean)
    with transaction(sessions) as session:
        session.execute(text("ANALYZE"))
    found: list[str | None] = []

    def look(session: Session) -> None:
        repository = JobRepository.from_session(session)
        found.append(repository.first_queued(None, now=at(0)))
        found.extend(repository.queued_unsent(None, since=at(0), now=at(0), limit=1))

    assert _rows_read(sessions, look) < 2 * waiting + FEW
    assert set(found) == {many_jobs}


@on_postgresql
@pytest.mark.usefixtures("many_jobs")
def test_rows_of_a_file_are_found_by_its_name(sessions: SessionFactory) -> None:
    keys = ["jobs/job_0100001/artifact_1", "jobs/job_0100002/artifact_1", "jobs/job_x/artifact_1"]
    found = []
    assert _rows_read(sessions, lambda session: found.append(find_named(session, keys))) < FEW
    assert found == [set(keys[:2])] * REPEATS


def test_rows_of_a_file_are_found_by_its_name_on_sqlite(sessions: SessionFactory) -> None:
    plans: list[str] = []

    def explain(_connection: object, cursor: Any, statement: str, values: Any, *_: object) -> None:
        rows = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
        plans.extend(row[3] for row in rows)

    event.listen(sessions.kw["bind"], "before_cursor_execute", explain)
    with transaction(sessions) as session:
        find_named(session, ["jobs/job_1/artifact_1", "jobs/job_1/checkpoint_1"])
    assert sorted(plan.partition(" USING")[0] for plan in plans if " USING" in plan) == [
        f"SEARCH {table}" for table in ("artifacts", "datasets", "jobs", "models")
    ]
    assert [plan for plan in plans if plan.startswith("SCAN")] == []


@on_postgresql
def test_heads_of_requests_with_pictures_are_read_once(sessions: SessionFactory) -> None:
    pixels = [[list(os.urandom(3)) for _ in range(64)] for _ in range(64)]
    probe = {"kind": "patch", "target_class": 0, "row": 0, "column": 0, "pixels": pixels}
    with transaction(sessions) as session:
        job = add_job(session, probes=[probe])
    with transaction(sessions) as session:
        size = int(session.scalar(text("SELECT pg_column_size(request) FROM jobs")) or 0)
        before = _parts_read_so_far(session)
        heads = JobRepository.from_session(session).request_heads([job.id])
        read = _parts_read_so_far(session) - before
    assert heads == {job.id: RequestHead.of(job.request)}
    assert size > 10_000
    assert 0 < read <= size / 1900 + 1


@on_postgresql
def test_jobs_of_a_time_are_found_without_those_after_and_before_it(
    sessions: SessionFactory, job_an_hour: list[Job]
) -> None:
    times = {
        "none yet": JobFilter(created_after=at(0) + timedelta(hours=ENDED)),
        "the last ones": JobFilter(created_after=job_an_hour[-4].created_at),
        "the first ones": JobFilter(created_before=job_an_hour[3].created_at),
        "some between": JobFilter(
            created_after=job_an_hour[1000].created_at, created_before=job_an_hour[1004].created_at
        ),
    }
    found: dict[str, list[str]] = {}
    read: dict[str, int] = {}
    for name, wanted in times.items():

        def look(session: Session, name: str = name, wanted: JobFilter = wanted) -> None:
            page = JobRepository.from_session(session).page(
                job_an_hour[0].tenant_id, wanted, after=None, limit=21
            )
            found[name] = [job.id for job in page]

        read[name] = _rows_read(sessions, look)
    expected = (slice(0), slice(-3, None), slice(3), slice(1001, 1004))
    assert found == {
        name: [job.id for job in reversed(job_an_hour[part])]
        for name, part in zip(times, expected, strict=True)
    }
    assert {name for name, rows in read.items() if rows >= FEW} == set()
