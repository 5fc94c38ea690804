"""The migrations, up and down, on both databases."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from service.db.base import Base
from service.db.migrate import downgrade, is_current, upgrade
from service.db.session import make_engine, make_session_factory, transaction
from service.db.tables import Job, Tenant
from tests.builders import add_job, add_model, add_tenant
from tests.databases import every_database
from tests.waiting import wait_until, waits_for_a_lock

pytestmark = every_database


def _tables(url: str) -> set[str]:
    engine = make_engine(url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def test_newest_schema_has_every_table(own_database_url: str) -> None:
    assert _tables(own_database_url) == set(Base.metadata.tables)


def test_down_to_base_leaves_no_table(own_database_url: str) -> None:
    downgrade(own_database_url, "base")
    assert _tables(own_database_url) == set()


def _schema(url: str) -> dict[str, object]:
    engine = make_engine(url)
    seen = inspect(engine)
    schema: dict[str, object] = {
        table: repr(
            (
                seen.get_columns(table),
                sorted(seen.get_indexes(table), key=repr),
                sorted(seen.get_foreign_keys(table), key=repr),
                sorted(seen.get_unique_constraints(table), key=repr),
                seen.get_pk_constraint(table),
            )
        )
        for table in seen.get_table_names()
    }
    engine.dispose()
    return schema


def test_down_and_up_again_gives_the_same_schema(own_database_url: str) -> None:
    before = _schema(own_database_url)
    downgrade(own_database_url, "base")
    assert not is_current(own_database_url)
    upgrade(own_database_url)
    assert is_current(own_database_url)
    assert _schema(own_database_url) == before


def test_tables_and_migrations_do_not_drift(own_database_url: str) -> None:
    engine = make_engine(own_database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_check_of_the_status_is_in_the_database(own_database_url: str) -> None:
    engine = make_engine(own_database_url)
    checks = inspect(engine).get_check_constraints("jobs")
    engine.dispose()
    assert [check["name"] for check in checks] == ["ck_jobs_status"]


def test_upgrade_of_a_current_database_keeps_its_rows(own_database_url: str) -> None:
    engine = make_engine(own_database_url)
    sessions = make_session_factory(engine)
    with transaction(sessions) as session:
        session.add(Tenant(name="kept"))
    upgrade(own_database_url)
    with transaction(sessions) as session:
        assert session.query(Tenant).one().name == "kept"
    engine.dispose()


def test_failed_migration_leaves_the_database_as_it_was(own_database_url: str) -> None:
    downgrade(own_database_url, "base")
    engine = make_engine(own_database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    with pytest.raises(Exception, match="jobs"):
        upgrade(own_database_url)
    engine.dispose()
    assert _tables(own_database_url) == {"jobs"}


def test_two_services_that_migrate_at_once_both_succeed(own_database_url: str) -> None:
    downgrade(own_database_url, "base")
    code = f"from service.db.migrate import upgrade; upgrade({own_database_url!r})"
    services = [subprocess.Popen([sys.executable, "-W", "error", "-c", code]) for _ in range(2)]
    assert [service.wait(60) for service in services] == [0, 0]
    assert is_current(own_database_url)


def test_job_for_no_certain_device_asks_for_none(own_database_url: str) -> None:
    """The migration to queues by device took the wish `auto` as it stood."""
    engine = make_engine(own_database_url)
    sessions = make_session_factory(engine)
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        job_ids = [add_job(session, tenant, device=wish).id for wish in (None, "cpu")]
    downgrade(own_database_url, "0004")
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET device = 'auto' WHERE device IS NULL"))
    upgrade(own_database_url)
    with transaction(sessions) as session:
        assert [session.get_one(Job, job_id).device for job_id in job_ids] == [None, "cpu"]
    engine.dispose()


def test_jobs_of_a_database_that_did_not_know_devices_keep_their_wish(
    own_database_url: str,
) -> None:
    engine = make_engine(own_database_url)
    sessions = make_session_factory(engine)
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        wishes = {add_job(session, tenant, device=wish).id: wish for wish in (None, "cpu", "cuda")}
    downgrade(own_database_url, "0001")
    upgrade(own_database_url)
    with transaction(sessions) as session:
        assert {job.id: job.device for job in session.query(Job)} == wishes
    engine.dispose()


def test_worker_that_ends_a_job_and_the_migration_to_names_of_files_both_succeed(
    own_database_url: str,
) -> None:
    """The worker changes the job's row, and then adds the sanitized model."""
    engine = make_engine(own_database_url)
    sessions = make_session_factory(engine)
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite locks the whole database, so nobody waits with half of it")
    with transaction(sessions) as session:
        job_id = add_job(session).id
    downgrade(own_database_url, "0005")

    with ThreadPoolExecutor(1) as pool:
        with transaction(sessions) as worker:
            worker.get_one(Job, job_id).progress = 1.0
            worker.flush()
            migration = pool.submit(upgrade, own_database_url)
            # Shorter than a transaction may stand still.
            wait_until(lambda: waits_for_a_lock(sessions) or migration.done(), 25)
            add_model(worker, worker.query(Tenant).one())
        migration.result()
    assert is_current(own_database_url)
    engine.dispose()
