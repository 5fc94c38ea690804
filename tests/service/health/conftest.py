"""Fixtures of the tests of health and figures."""

import socket
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from service.settings import Settings


@pytest.fixture
def with_hanging_database(settings: Settings) -> Iterator[Settings]:
    """Settings where something listens as the database, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        changed = settings.model_copy(
            update={"database_url": SecretStr(f"postgresql+psycopg://u:p@127.0.0.1:{port}/d")}
        )
        changed.__dict__.pop("sessions", None)
        yield changed
        changed.sessions.kw["bind"].dispose()
