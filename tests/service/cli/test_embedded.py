import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.embedded import FolderInUse, embedded_settings, first_key, locked
from service.cli.failures import CommandFailed
from service.cli.founding import has_keys, make_admin_key, upgrade
from service.cli.stack import environment_of
from service.settings import Settings


def test_everything_lies_in_the_folder_and_the_rest_is_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANITIZER_DATABASE_URL", "sqlite:///elsewhere.db")
    monkeypatch.setenv("SANITIZER_REFERENCE_ROOTS", '["/srv/data"]')
    settings = embedded_settings(tmp_path, device="cpu")
    assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path / 'sanitizer.db'}"
    assert settings.storage_url == f"file:{tmp_path / 'store'}"
    assert settings.work_dir == tmp_path / "work"
    assert settings.reference_roots == (Path("/srv/data"),)
    assert settings.device == "cpu"


def test_another_process_reads_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANITIZER_REFERENCE_ROOTS", '["/srv/data", "/mnt"]')
    settings = embedded_settings(tmp_path, log_level="WARNING")
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from service.cli.embedded import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): pass"
    )
    with locked(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False
        )
    assert f"(process {os.getpid()})".encode() in done.stderr
    with locked(tmp_path):
        pass


def test_a_second_lock_says_what_to_do(tmp_path: Path) -> None:
    with locked(tmp_path / "new"), pytest.raises(FolderInUse) as caught, locked(tmp_path / "new"):
        pass
    assert caught.value.hint is not None
    assert "--data-dir" in caught.value.hint


def test_the_first_key_is_made_once(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    upgrade(settings)
    assert not has_keys(settings)
    key = first_key(settings)
    assert key is not None
    assert key.startswith("bds_")
    assert first_key(settings) is None
    settings.sessions.kw["bind"].dispose()


def test_a_database_without_tables_is_named(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    with pytest.raises(CommandFailed, match="cannot be used") as caught:
        make_admin_key(settings, "acme", "x")
    assert caught.value.hint is not None
    assert "sanitizer migrate" in caught.value.hint
    settings.sessions.kw["bind"].dispose()
