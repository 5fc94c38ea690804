import json
import stat
from pathlib import Path

import pytest

from service.cli.config import (
    Login,
    NotLoggedIn,
    find_login,
    is_loopback,
    normal_url,
    save_login,
    saved_login,
)
from service.cli.failures import WrongUsage

SAVED = Login("http://127.0.0.1:8000", "bds_saved")


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SANITIZER_URL", raising=False)
    monkeypatch.delenv("SANITIZER_API_KEY", raising=False)


def test_a_saved_login_is_found() -> None:
    save_login(SAVED)
    assert find_login() == SAVED


def test_a_saved_login_is_readable_by_its_owner_alone() -> None:
    path = save_login(SAVED)
    path.chmod(0o644)
    assert stat.S_IMODE(save_login(SAVED).stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_without_a_login_the_message_says_what_to_do() -> None:
    with pytest.raises(NotLoggedIn, match="sanitizer login URL"):
        find_login()


def test_the_environment_goes_before_the_saved_login(monkeypatch: pytest.MonkeyPatch) -> None:
    save_login(SAVED)
    monkeypatch.setenv("SANITIZER_URL", "https://elsewhere.example/")
    monkeypatch.setenv("SANITIZER_API_KEY", "bds_other")
    assert find_login() == Login("https://elsewhere.example", "bds_other")


def test_a_saved_key_is_not_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    save_login(SAVED)
    monkeypatch.setenv("SANITIZER_URL", "https://elsewhere.example")
    with pytest.raises(NotLoggedIn, match="No key for https://elsewhere"):
        find_login()


def test_a_saved_key_is_sent_to_its_server_when_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_login(SAVED)
    monkeypatch.setenv("SANITIZER_URL", SAVED.url + "/")
    assert find_login() == SAVED


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json"])
def test_a_damaged_login_is_named(text: str) -> None:
    save_login(SAVED).write_text(text)
    with pytest.raises(NotLoggedIn, match="cannot be read"):
        saved_login()


def test_the_saved_file_is_json() -> None:
    assert json.loads(save_login(SAVED).read_text()) == {"url": SAVED.url, "api_key": "bds_saved"}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "host"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(WrongUsage, match="no address"):
        normal_url(url)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://0.0.0.0:8000", False),
        ("http://127.example.org", False),
        ("https://example.org", False),
    ],
)
def test_loopback_addresses_are_told_from_others(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback
