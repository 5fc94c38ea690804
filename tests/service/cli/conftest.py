"""Fixtures of the command's tests: a login for the real server, files to send."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.app import app
from service.cli.config import KEY_VARIABLE, URL_VARIABLE, Login
from service.cli.remote import Remote
from service.db.tables import Scope
from tests.service.conftest import MakeKey

RunCommand = Callable[..., Result]


@pytest.fixture
def login(server: str, make_key: MakeKey) -> Login:
    """An admin key of the tenant `acme`, and the address of the server."""
    return Login(server, make_key("acme", [Scope.ADMIN]))


@pytest.fixture
def api(login: Login) -> Iterator[Remote]:
    """The client over a sound connection."""
    with Remote(login) as remote:
        yield remote


@pytest.fixture
def run_command(login: Login, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunCommand:
    """Runs a command line as somebody who is logged in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv(URL_VARIABLE, login.url)
    monkeypatch.setenv(KEY_VARIABLE, login.api_key)

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, arguments, input=stdin)

    return run


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A file of a good megabyte: the service does not look inside."""
    path = tmp_path / "victim.pth"
    path.write_bytes(bytes(range(256)) * 5000)
    return path


@pytest.fixture
def images_zip(tmp_path: Path) -> Path:
    """A zip of class folders; the service looks at its first bytes alone."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("0/a.png", "1/b.png"):
            archive.writestr(name, b"not looked at")
    path = tmp_path / "clean.zip"
    path.write_bytes(content.getvalue())
    return path
