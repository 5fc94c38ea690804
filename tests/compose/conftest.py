"""`docker compose` for real: each fixture is one installation, brought up and torn down."""

import json
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.make_env import write
from tests.e2e.user import User

ROOT = Path(__file__).parents[2]
COMMAND = shlex.split(os.environ.get("SANITIZER_TEST_COMPOSE", "docker compose"))
UP_SECONDS = 1800
"""The first time the images are built, the worker's with gigabytes of torch."""


def run(*command: str, seconds: float = 120) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    if done.returncode != 0:
        raise AssertionError(
            f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


class Installation:
    """One compose project with secrets, ports and volumes of its own.

    Args:
        files: Compose files, relative to the root of the repository.
    """

    def __init__(
        self, folder: Path, port: int, *, files: Sequence[str] = (), **environment: str
    ) -> None:
        self.name = f"sanitizer-test-{secrets.token_hex(3)}"
        self.url = f"http://127.0.0.1:{port}"
        self._env_file = folder / "env"
        self._files = ["docker-compose.yml", *files]
        write(self._env_file)
        quick = {
            "SANITIZER_PORT": str(port),
            "SANITIZER_LEASE_SECONDS": "10",
            "SANITIZER_HEARTBEAT_SECONDS": "2",
            "SANITIZER_RETRY_SECONDS": "1",
            "SANITIZER_RECONCILE_SECONDS": "2",
            "SANITIZER_CHECKPOINT_SECONDS": "1",
            "SANITIZER_CHECKPOINT_STORE_SECONDS": "2",
            "WORKER_THREADS": "1",
            **environment,
        }
        with self._env_file.open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in quick.items())
        self.api_key = ""

    def compose(self, *arguments: str, seconds: float = 180) -> str:
        """What `docker compose` says."""
        files = [part for file in self._files for part in ("--file", file)]
        return run(
            *COMMAND,
            *("--project-name", self.name, "--env-file", str(self._env_file)),
            *files,
            *arguments,
            seconds=seconds,
        )

    def up(self, *arguments: str) -> None:
        """Brings everything up and waits until it is healthy."""
        self.compose("up", "--detach", "--wait", *arguments, seconds=UP_SECONDS)

    def make_key(self) -> None:
        """The first key, as docs/operations.md tells an operator to make it."""
        command = ("run", "--rm", "--no-deps", "service", "sanitizer", "keys", "bootstrap")
        self.api_key = self.compose(*command, "--tenant", "test").strip().splitlines()[-1]

    def user(self) -> User:
        """Somebody who has the key."""
        return User(self.url, self.api_key)

    def containers(self, service: str) -> list[str]:
        """Ids of the running containers of a service."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """All that docker knows of a container."""
        (found,) = json.loads(run("docker", "inspect", container))
        return dict(found)

    def worker_of(self, job_id: str) -> str:
        """Host name of the worker that has a job: the id of its container, shortened."""
        hostname = self.sql(
            "SELECT hostname FROM workers w JOIN jobs j ON j.worker_id = w.id "
            f"WHERE j.id = '{job_id}'"
        )
        assert hostname, f"no worker has {job_id}"
        return hostname

    def ended_at(self, job_id: str, *services: str) -> str:
        """The container, as compose names it in logs (`worker-2`), where a job succeeded."""
        for service in services:
            for line in self.logs(service).splitlines():
                if job_id in line and '"outcome": "succeeded"' in line:
                    return line.partition("|")[0].replace("\x1b[2K", "").strip()
        raise AssertionError(f"no worker says that {job_id} succeeded")

    def sql(self, query: str) -> str:
        """The answer of the database, as text."""
        return self.compose(
            *("exec", "-T", "postgres", "psql", "--username=sanitizer", "--dbname=sanitizer"),
            *("--no-psqlrc", "--tuples-only", "--no-align", "--command", query),
        ).strip()

    def logs(self, service: str) -> str:
        """What a service has written, all its containers together."""
        return self.compose("logs", "--no-color", service)

    def down(self) -> None:
        """Removes everything, data included."""
        self.compose("--profile", "s3", "down", "--volumes", "--remove-orphans", "--timeout", "20")


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    """Waits for something to come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.5)


def _brought_up(installation: Installation, *images: str) -> Iterator[Installation]:
    try:
        installation.compose("build", *images, seconds=UP_SECONDS)
        installation.up()
        installation.make_key()
        yield installation
    finally:
        installation.down()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The default: PostgreSQL, Redis, files in a volume, one worker."""
    installation = Installation(tmp_path_factory.mktemp("compose"), 18000)
    yield from _brought_up(installation, "service", "worker")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Three worker hosts that share nothing but broker, database and an S3 store."""
    installation = Installation(
        tmp_path_factory.mktemp("fleet"),
        18001,
        files=["tests/compose/hosts.yml"],
        COMPOSE_PROFILES="s3",
        WORKERS="0",
        S3_PORT="19000",
        SANITIZER_STORAGE_URL="s3://sanitizer/files",
        SANITIZER_PRESIGNED_SECONDS="300",
    )
    yield from _brought_up(installation, "service", "worker", "s3")


@pytest.fixture
def user(installation: Installation) -> Iterator[User]:
    """A user of the default installation."""
    with installation.user() as user:
        yield user
