"""Runs the migrations: over a given URL (`service.db.migrate`) or the one of the settings."""

from alembic import context
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from service.db.base import Base
from service.db.session import SessionFactory, for_writing, make_engine, make_session_factory
from service.db.tables import Job
from service.settings import Settings

LOCK = 0x5A17_12E5
"""Number of the PostgreSQL advisory lock that one migrating process holds."""

assert Job.metadata is Base.metadata  # importing the tables is what fills the metadata


def _run() -> None:
    url = context.config.attributes.get("url") or Settings().database_url.get_secret_value()
    if context.is_offline_mode():
        _configure_offline(url)
        return
    engine = _migration_engine(url)
    try:
        with engine.connect() as connection:
            _migrate(connection)
    finally:
        engine.dispose()


def _configure_offline(url: str) -> None:
    """Prints SQL instead of running it (`alembic upgrade head --sql`)."""
    context.configure(
        url=url,
        target_metadata=Base.metadata,
        literal_binds=True,
        render_as_batch=url.startswith("sqlite"),
    )
    with context.begin_transaction():
        context.run_migrations()


def _migrate(connection: Connection) -> None:
    """All missing revisions in one transaction, so that a failure leaves the database as it was."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # The limits of other sessions are too narrow for what happens here.
            for name in ("lock_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text(f"SET LOCAL {name} = 0"))
            # Several services that start at once migrate one after the other.
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.run_migrations()
        if connection.dialect.name == "sqlite":
            _check_foreign_keys(connection)
    connection.commit()


def _migration_engine(url: str) -> Engine:
    factory: SessionFactory = for_writing(make_session_factory(make_engine(url)))
    engine: Engine = factory.kw["bind"]
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _forget_foreign_keys)
    return engine


def _forget_foreign_keys(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # Batch mode drops and renames tables: with the keys on, that deletes the rows pointing there.
    connection.cursor().execute("PRAGMA foreign_keys = OFF")


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise RuntimeError(f"the migration left rows that point nowhere: {broken[:5]}")


_run()
