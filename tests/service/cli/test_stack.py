import os
import socket
import subprocess
from pathlib import Path

import pytest

from service.cli.embedded import embedded_settings
from service.cli.founding import upgrade
from service.cli.stack import (
    Stack,
    StackError,
    environment_of,
    free_port,
)


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


def _go_where_a_stray_file_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sqlalchemy.py").write_text("raise SystemExit('a stray file was imported')")
    monkeypatch.chdir(folder)


def test_the_api_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = embedded_settings(tmp_path)
    upgrade(settings)
    settings.sessions.kw["bind"].dispose()
    _go_where_a_stray_file_lies(tmp_path, monkeypatch)
    stack = Stack(settings, tmp_path, port=0)
    try:
        stack.start_part("broker")
        stack.start_part("api")
    finally:
        stack.stop()


def test_the_worker_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _go_where_a_stray_file_lies(tmp_path, monkeypatch)
    stack = Stack(embedded_settings(tmp_path), tmp_path)
    done = subprocess.run(
        [*stack._command("worker"), "--help"],
        env={**os.environ, **environment_of(stack.settings)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--concurrency" in done.stdout
