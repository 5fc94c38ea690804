"""A whole service in real processes: API, worker, broker, database, store."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.cli import founding
from service.cli.embedded import embedded_settings, first_key
from service.cli.stack import Stack
from tests.collector import Collector, collecting
from tests.e2e.user import User


@dataclass(frozen=True)
class Service:
    """A running stack and the key of its first tenant."""

    stack: Stack
    api_key: str
    references: Path
    """Folder that `file://` references may point into."""

    def user(self) -> User:
        """Somebody who has the key."""
        return User(self.stack.url, self.api_key)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the stack's traces go."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    """The embedded default, quick to notice what was lost."""
    folder = tmp_path_factory.mktemp("service")
    references = folder / "references"
    references.mkdir()
    settings = embedded_settings(
        folder,
        device="cpu",
        slots=1,
        # One: two threads of a job beside other tests wait for each other most of the time.
        threads_per_job=1 if "PYTEST_XDIST_WORKER" in os.environ else 2,
        lease_seconds=10,
        heartbeat_seconds=1,
        reconcile_seconds=1,
        resend_seconds=2,
        retry_seconds=1,
        reference_roots=(references,),
        tracing_endpoint=collector.url,
    )
    founding.upgrade(settings)
    with Stack(settings, folder, port=0) as stack:
        key = first_key(settings)
        assert key is not None
        yield Service(stack, key, references)


@pytest.fixture
def user(service: Service) -> Iterator[User]:
    """A user of the running service."""
    with service.user() as user:
        yield user
