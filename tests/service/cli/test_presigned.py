"""Downloads of the command where the API sends it to the store."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.cli.commands.download import wanted_artifact, wanted_model
from service.cli.config import Login
from service.cli.downloading import WantedFile, download
from service.cli.failures import NoAnswer
from service.cli.remote import Remote
from service.db.session import SessionFactory
from service.db.tables import Scope
from service.settings import Settings
from tests.s3 import S3Server, serve_s3
from tests.service.cli.breaking import breaking
from tests.service.cli.conftest import RunCommand
from tests.service.conftest import MakeKey, serve
from tests.service.jobs.builders import finish_job, make_job, start_job

Reach = Callable[[str], AbstractContextManager[Remote]]


def no_pause(_seconds: float) -> None:
    """Tests need not wait."""


@pytest.fixture
def settings(settings: Settings, s3_server: S3Server) -> Settings:
    """Files lie on S3, which gives them itself."""
    assert settings.sessions  # the copy shares them, and they are closed with the first
    return settings.model_copy(update={**s3_server.settings(), "presigned_seconds": 60})


class Told:
    """A file on the server, and what was answered when it was opened."""

    def __init__(self, wanted: WantedFile) -> None:
        self.inner = wanted
        self.starts: list[int] = []
        self.answers: list[httpx.Response] = []

    @property
    def wanted(self) -> WantedFile:
        """The file, opened through here."""
        return replace(self.inner, open=self._open)

    @contextmanager
    def _open(self, start: int) -> Iterator[httpx.Response]:
        self.starts.append(start)
        with self.inner.open(start) as response:
            self.answers.append(response)
            yield response


def test_model_comes_from_the_store_which_never_sees_the_key(
    api: Remote, model_file: Path, tmp_path: Path, s3_server: S3Server
) -> None:
    told = Told(wanted_model(api, api.upload_model(model_file, {})))
    target = download(told.wanted, tmp_path / "x.pth")
    assert target.read_bytes() == model_file.read_bytes()
    (answer,) = told.answers
    assert [hop.status_code for hop in answer.history] == [307]
    assert str(answer.url).startswith(f"{s3_server.endpoint}/")
    # Same host, another port. The server refuses a request with two kinds of signature, too.
    assert answer.url.host == answer.history[0].url.host
    assert "authorization" in answer.history[0].request.headers
    assert "authorization" not in answer.request.headers


def test_any_client_on_httpx_that_follows_keeps_its_key_to_itself(
    api: Remote, remote: httpx.Client, model_file: Path
) -> None:
    path = f"/v1/models/{api.upload_model(model_file, {}).id}/file"
    answer = remote.get(path, follow_redirects=True)
    assert (answer.status_code, answer.content) == (200, model_file.read_bytes())
    assert "authorization" not in answer.request.headers


def test_all_files_of_a_job_come_from_the_store(
    app: FastAPI, api: Remote, remote: httpx.Client, sessions: SessionFactory, tmp_path: Path
) -> None:
    job = make_job(remote)
    claim = start_job(sessions, job["id"])
    finish_job(sessions, app.state.services.store, claim, tmp_path)
    for artifact in api.artifacts(job["id"]):
        told = Told(wanted_artifact(api, artifact))
        target = download(told.wanted, tmp_path / "fetched" / artifact.name)
        assert target.read_bytes() == (tmp_path / artifact.name).read_bytes()
        assert told.answers[0].history


def test_command_downloads_from_the_store(
    run_command: RunCommand, api: Remote, model_file: Path, tmp_path: Path
) -> None:
    model = api.upload_model(model_file, {})
    done = run_command("download", model.id, "-o", str(tmp_path / "x.pth"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.pth").read_bytes() == model_file.read_bytes()


@pytest.fixture
def reach(app: FastAPI, settings: Settings, make_key: MakeKey) -> Reach:
    """Makes a client of an API whose clients find the store at another address."""
    del app  # it puts pytest's log handlers back, after the apps made here too

    @contextmanager
    def reach(endpoint: str) -> Iterator[Remote]:
        elsewhere = settings.model_copy(update={"s3_public_endpoint": endpoint})
        with serve(create_app(elsewhere)) as address:
            login = Login(address, make_key("acme", [Scope.ADMIN]))
            with Remote(login) as remote:
                yield remote

    return reach


def test_download_that_breaks_at_the_store_goes_on_where_it_stopped(
    reach: Reach, s3_server: S3Server, model_file: Path, tmp_path: Path
) -> None:
    with breaking(s3_server.endpoint, 500_000) as wire, reach(wire.url) as remote:
        told = Told(wanted_model(remote, remote.upload_model(model_file, {})))
        target = download(told.wanted, tmp_path / "x.pth", pause=no_pause)
    assert target.read_bytes() == model_file.read_bytes()
    assert told.starts[0] == 0
    assert told.starts[1] > 100_000
    # The rest came through the API, which knows the file by its checksum.
    assert (told.answers[1].status_code, wire.connections) == (206, 1)


def test_store_that_is_not_where_the_api_says_is_named(
    reach: Reach, model_file: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with reach(nowhere) as remote:
        wanted = wanted_model(remote, remote.upload_model(model_file, {}))
        with pytest.raises(NoAnswer, match=f"{remote.url} has its files at {nowhere}, where no"):
            download(wanted, tmp_path / "x.pth", pause=no_pause)


def test_store_that_refuses_is_named_without_the_signed_address(
    reach: Reach, model_file: Path, tmp_path: Path
) -> None:
    with serve_s3(tmp_path / "another") as empty, reach(empty.endpoint) as remote:
        wanted = wanted_model(remote, remote.upload_model(model_file, {}))
        with pytest.raises(NoAnswer) as caught:
            download(wanted, tmp_path / "x.pth", pause=no_pause)
    assert caught.value.message == (
        f"{remote.url} has its files at {empty.endpoint}, which answered 404 Not Found."
    )
