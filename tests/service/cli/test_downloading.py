"""Downloads from the real server, over connections that hold and connections that break."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.cli.commands.download import wanted_model
from service.cli.config import Login
from service.cli.downloading import Damaged, WantedFile, destination, download, safe_name
from service.cli.failures import NoAnswer, WrongUsage
from service.cli.remote import Remote
from tests.service.cli.breaking import breaking


def no_pause(_seconds: float) -> None:
    """Tests need not wait."""


@pytest.fixture
def wanted(api: Remote, model_file: Path) -> WantedFile:
    return wanted_model(api, api.upload_model(model_file, {}))


def test_a_file_arrives_whole(wanted: WantedFile, model_file: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    target = tmp_path / "new" / "clean.pth"
    assert download(wanted, target, on_bytes=counted.append) == target
    assert target.read_bytes() == model_file.read_bytes()
    assert sum(counted) == wanted.bytes
    assert [p.name for p in target.parent.iterdir()] == ["clean.pth"]


def test_a_download_that_breaks_goes_on_where_it_stopped(
    api: Remote, login: Login, model_file: Path, tmp_path: Path
) -> None:
    model = api.upload_model(model_file, {})
    starts: list[int] = []
    with (
        breaking(login.url, 400_000, 0, 500_000) as wire,
        Remote(Login(wire.url, login.api_key)) as remote,
    ):
        inner = wanted_model(remote, model)

        @contextmanager
        def opened(start: int) -> Iterator[httpx.Response]:
            starts.append(start)
            with inner.open(start) as response:
                yield response

        target = download(replace(inner, open=opened), tmp_path / "x.pth", pause=no_pause)
    assert target.read_bytes() == model_file.read_bytes()
    assert starts[0] == 0
    assert starts[1] == starts[2] > 100_000
    assert starts[3] > starts[2]


def test_a_download_that_was_given_up_is_resumed_by_the_next_command(
    api: Remote, login: Login, model_file: Path, tmp_path: Path
) -> None:
    model = api.upload_model(model_file, {})
    target = tmp_path / "x.pth"
    with (
        breaking(login.url, 700_000, *[0] * 10) as wire,
        Remote(Login(wire.url, login.api_key)) as remote,
        pytest.raises(NoAnswer) as caught,
    ):
        download(wanted_model(remote, model), target, pause=no_pause)
    assert caught.value.hint is not None
    assert not target.exists()
    counted: list[int] = []
    download(wanted_model(api, model), target, on_bytes=counted.append)
    assert counted[0] > 400_000
    assert target.read_bytes() == model_file.read_bytes()


def test_a_damaged_rest_of_an_earlier_try_is_found_and_removed(
    wanted: WantedFile, tmp_path: Path
) -> None:
    target = tmp_path / "x.pth"
    partial = tmp_path / f".x.pth.{wanted.sha256[:12]}.part"
    partial.write_bytes(b"damaged")
    with pytest.raises(Damaged, match="arrived damaged"):
        download(wanted, target)
    assert not target.exists()
    assert not partial.exists()
    download(wanted, target)


def test_a_file_that_exists_is_kept_unless_told_otherwise(
    wanted: WantedFile, tmp_path: Path
) -> None:
    target = tmp_path / "x.pth"
    target.write_text("mine")
    with pytest.raises(WrongUsage, match="exists already"):
        download(wanted, target)
    assert target.read_text() == "mine"
    download(wanted, target, force=True)
    assert target.stat().st_size == wanted.bytes


def test_names_from_the_server_cannot_leave_the_folder(tmp_path: Path) -> None:
    assert safe_name("../../etc/passwd") == "passwd"
    assert safe_name("..\\x\\model.pth") == "model.pth"
    assert safe_name("a\x1b\nb") == "ab"
    assert safe_name("..") == safe_name("") == safe_name("/") == "download"
    assert destination(tmp_path, "../x") == tmp_path / "x"
    assert destination(tmp_path / "y", "../x") == tmp_path / "y"
    assert destination(None, "../x") == Path("x")
