"""Transactions, with real races on SQLite and PostgreSQL."""

import threading

import pytest
from sqlalchemy import func, select

from service.db.session import SessionFactory, transaction
from service.db.tables import Tenant
from tests.databases import every_database

pytestmark = every_database


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
