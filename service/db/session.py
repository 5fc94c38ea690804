"""Engines and sessions, the same for the service and the worker."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

SessionFactory = sessionmaker[Session]

_WRITES = "sanitizer_writes"
# Without these a connection whose network is cut hangs for a quarter of an hour.
_POSTGRESQL = {
    "connect_timeout": 5,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Of libpq: seconds, but for `tcp_user_timeout`, which is in milliseconds."""
_POSTGRESQL_SESSION = {
    # The server's end of the same: what a host that was cut off has locked is free again soon.
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
    # Whoever waits for such a lock meanwhile is told so, and tries again.
    "lock_timeout": "10s",
    # Statements are planned for the values they come with. From the tenth time on the server would
    # plan them for any value, as if as many jobs waited as have ended, and read through them all.
    "plan_cache_mode": "force_custom_plan",
}
"""Of the server, for our sessions; what PGOPTIONS says goes before, and before that the URL."""


def make_engine(url: str) -> Engine:
    """An engine for `sqlite:///...` or `postgresql+psycopg://...`."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        # Threads of one process share a pool; a writer waits for another one up to this long.
        options["connect_args"] = {"timeout": 30, "check_same_thread": False}
    else:
        settings = [f"-c {name}={value}" for name, value in _POSTGRESQL_SESSION.items()]
        wanted = make_url(url).query.get("options", "")
        more = [wanted] if isinstance(wanted, str) else wanted
        # What stands last counts. libpq would not look at PGOPTIONS any more.
        settings += [os.environ.get("PGOPTIONS", ""), *more]
        options["connect_args"] = {**_POSTGRESQL, "options": " ".join(filter(None, settings))}
    engine = create_engine(url, **options)
    event.listen(engine, "handle_error", _tell_ended_sessions, retval=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def make_session_factory(engine: Engine) -> SessionFactory:
    """Sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def for_writing(factory: SessionFactory) -> SessionFactory:
    """The same sessions for transactions that read first and write later.

    On SQLite such a transaction fails at once ("database is locked") if another one has committed
    in between, so it takes the write lock when it begins, and waits for it. On PostgreSQL nothing
    changes.
    """
    engine: Engine = factory.kw["bind"]
    return make_session_factory(engine.execution_options(**{_WRITES: True}))


@contextmanager
def transaction(factory: SessionFactory) -> Iterator[Session]:
    """One transaction: committed at the end of the block, rolled back if it raises."""
    with factory() as session, session.begin():
        yield session


def _tell_ended_sessions(context: ExceptionContext) -> BaseException | None:
    """Makes an ended session what others that are cut are, an `OperationalError`.

    The driver puts it with the programming errors of its class where the server ended it because it
    stood still or took too long, and where the server writes nothing: one that was primary, or
    whose disk is full. Such a connection is given up, since the next may lead to another server.
    """
    error = context.original_exception
    if not isinstance(context.sqlalchemy_exception, InternalError):
        return None
    state = getattr(error, "sqlstate", None)
    if state == "25006":
        context.is_disconnect = True
    if not context.is_disconnect and state not in {"25P03", "25P04"}:
        return None
    return OperationalError(
        context.statement,
        context.parameters,
        error,
        connection_invalidated=context.is_disconnect,
    )


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver would begin transactions late and by itself; SQLAlchemy's `begin` event does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
