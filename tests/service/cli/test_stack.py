import socket
from pathlib import Path

import pytest

from service.cli.embedded import embedded_settings
from service.cli.stack import Stack, StackError, free_port


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_address_is_one_that_a_client_can_use(tmp_path: Path, host: str, url: str) -> None:
    assert Stack(embedded_settings(tmp_path), tmp_path, host=host, port=8000).url == url


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack(embedded_settings(tmp_path), tmp_path, port=port)
        with pytest.raises(StackError, match=f"Port {port} .*--port"):
            stack.start()
    assert stack.parts == []


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
