"""`sanitizer up` as a person starts it: a real process with all its parts."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sanitizer.exits import Exit
from service.cli.stack import free_port

SECONDS = 60.0
Start = Callable[..., "RunningUp"]


class RunningUp:
    """One `sanitizer up`."""

    def __init__(self, data_dir: Path, config: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from service.cli import main; main()", "up"]
            + ["--port", str(port), "--data-dir", str(data_dir)],
            env={**os.environ, "XDG_CONFIG_HOME": str(config), "SANITIZER_DEVICE": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def read_until(self, text: str) -> str:
        """All output so far, once it holds a text."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while text not in self.output:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.2)
            if ready:
                piece = os.read(self.process.stdout.fileno(), 65536).decode()
                assert piece, f"it ended: {self.output}"
                self.output += piece
            assert time.monotonic() < deadline, self.output
        return self.output

    def processes(self) -> list[int]:
        """This process and all that descend from it."""
        return [self.process.pid, *descendants(self.process.pid)]

    def end(self, number: signal.Signals) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        """Waits for the end; the exit code."""
        out, _ = self.process.communicate(timeout=SECONDS)
        self.output += out.decode()
        return self.process.returncode


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


REAPED = 3.0
"""Seconds, at most, until whoever adopts a grandchild that has ended takes it off the list."""


def alive(pids: list[int]) -> list[int]:
    """Those that still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def until_gone(pids: list[int], seconds: float = 20) -> list[int]:
    """Waits until none of them runs; those that still do."""
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(pids)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[RunningUp] = []

    def make(port: int | None = None, data_dir: str = "data") -> RunningUp:
        up = RunningUp(tmp_path / data_dir, tmp_path / "config", port or free_port())
        started.append(up)
        return up

    yield make
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.process.communicate()


def test_ctrl_c_stops_everything_and_the_next_start_goes_on(start: Start, tmp_path: Path) -> None:
    up = start()
    text = up.read_until("Try next")
    match = re.search(r"Key \(shown this once\): (bds_\S+)", text)
    assert match is not None
    key = match.group(1)
    assert up.url in text
    login = (tmp_path / "config" / "sanitizer" / "login.json").read_text()
    assert key in login
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{up.url}/v1/jobs", headers=headers).json()["data"] == []

    busy = start()
    assert busy.finish() == Exit.ERROR
    assert f"(process {up.process.pid}) runs over" in busy.output

    taken = start(port=int(up.url.rpartition(":")[2]), data_dir="other")
    assert taken.finish() == Exit.ERROR
    assert "cannot be used" in taken.output
    assert "--port" in taken.output

    pids = up.processes()
    assert len(pids) >= 4
    assert up.end(signal.SIGINT) == 0
    assert until_gone(pids, REAPED) == []
    assert "goes on with the same data" in up.output
    assert "Traceback" not in up.output

    again = start(port=int(up.url.rpartition(":")[2]))
    again.read_until("Try next")
    assert "bds_" not in again.output
    assert httpx.get(f"{again.url}/v1/jobs", headers=headers).status_code == 200
    pids = again.processes()
    assert again.end(signal.SIGTERM) == 0
    assert until_gone(pids, REAPED) == []


def test_all_parts_end_when_the_process_is_killed_outright(start: Start) -> None:
    up = start()
    up.read_until("Try next")
    pids = up.processes()
    up.end(signal.SIGKILL)
    assert until_gone(pids) == []


def test_a_part_that_ends_by_itself_ends_the_rest_and_is_named(start: Start) -> None:
    up = start()
    up.read_until("Try next")
    pids = up.processes()
    api = next(pid for pid in pids if b"uvicorn" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(api, signal.SIGKILL)
    assert up.finish() == Exit.ERROR
    assert "The api ended with exit code -9" in up.output
    assert until_gone(pids, REAPED) == []
