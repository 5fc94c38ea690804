"""Transactions, with real races on SQLite and PostgreSQL."""

import threading
import time

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DataError, InternalError

from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, make_engine, transaction
from service.db.tables import Tenant
from tests.databases import every_database, on_postgresql


def _with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}options={options}"


@every_database
def test_block_that_raises_is_rolled_back(sessions: SessionFactory) -> None:
    def add_and_fail() -> None:
        with transaction(sessions) as session:
            session.add(Tenant(name="gone"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_and_fail()
    with transaction(sessions) as session:
        assert session.query(Tenant).all() == []


@every_database
def test_transactions_that_read_first_and_write_later_wait_for_each_other(
    sessions: SessionFactory,
) -> None:
    errors: list[BaseException] = []

    def add(number: int) -> None:
        try:
            for step in range(10):
                with transaction(sessions) as session:
                    session.scalar(select(func.count()).select_from(Tenant))
                    session.add(Tenant(name=f"{number}-{step}"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with transaction(sessions) as session:
        assert session.query(Tenant).count() == 40


@on_postgresql
def test_server_ends_a_transaction_that_stands_still_and_it_counts_as_away(
    database_url: str,
) -> None:
    shorter = "-c idle_in_transaction_session_timeout=50ms"
    engine = make_engine(_with_options(database_url, shorter))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(0.3)
        with pytest.raises(DATABASE_AWAY):
            connection.execute(text("SELECT 1"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


@on_postgresql
def test_server_that_writes_nothing_counts_as_away_and_its_connection_is_given_up(
    database_url: str,
) -> None:
    """One that was primary until just now: the next connection may lead to the one that is."""
    engine = make_engine(_with_options(database_url, "-c default_transaction_read_only=on"))
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(DATABASE_AWAY):
            connection.execute(text("CREATE TABLE written (number int)"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
    engine.dispose()


@on_postgresql
def test_statement_in_a_transaction_that_failed_does_not_count_as_away(
    sessions: SessionFactory,
) -> None:
    with sessions() as session:
        with pytest.raises(DataError):
            session.connection().execute(text("SELECT 1 / 0"))
        with pytest.raises(InternalError, match="transaction is aborted") as raised:
            session.connection().execute(text("SELECT 1"))
    assert not isinstance(raised.value, DATABASE_AWAY)


@on_postgresql
def test_options_of_the_environment_count_and_those_of_the_url_more(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=7s -c lock_timeout=3s -c work_mem=5MB")
    engine = make_engine(_with_options(database_url, "-c work_mem=6MB"))
    names = ("statement_timeout", "lock_timeout", "work_mem", "idle_in_transaction_session_timeout")
    with engine.connect() as connection:
        shown = [connection.scalar(text(f"SHOW {name}")) for name in names]
    engine.dispose()
    assert shown == ["7s", "3s", "6MB", "30s"]


@on_postgresql
def test_session_waits_for_no_lock_for_long(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        limits = [
            session.scalar(text(f"SHOW {name}"))
            for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert limits == ["10s", "30s"]
