"""Whether a process's main loop turns, as a container runtime asks."""

import os
import subprocess
import sys
from pathlib import Path

from worker.alive import STALE_SECONDS, check


def _ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.alive", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_file_that_was_just_touched_is_alive(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    assert _ask(str(tmp_path / "alive")).returncode == 0


def test_process_that_has_not_started_is_not_alive(tmp_path: Path) -> None:
    answer = _ask(str(tmp_path / "alive"), "30")
    assert answer.returncode == 1
    assert "is not there" in answer.stderr


def test_file_that_was_touched_long_ago_is_not_alive(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    path.touch()
    long_ago = path.stat().st_mtime - STALE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    assert "stands still" in str(check(path))
    assert check(path, stale_seconds=2 * STALE_SECONDS) is None


def test_wrong_usage_is_told() -> None:
    for arguments in ((), ("file", "soon")):
        answer = _ask(*arguments)
        assert (answer.returncode, answer.stderr.splitlines()) == (
            2,
            ["usage: python -m worker.alive FILE [SECONDS]"],
        )
