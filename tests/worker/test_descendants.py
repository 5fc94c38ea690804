"""What a run starts ends with it, wherever it hides."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.child import Child, Limits

linux = pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")

HIDE = """
import os, sys, time
def hide():
    if os.fork() == 0:  # out of the session, and its parent ends
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            with open("hidden.new", "w") as file:
                file.write(str(os.getpid()))
            os.rename("hidden.new", "hidden")
            time.sleep(600)
        os._exit(0)
    while not os.path.exists("hidden"):
        time.sleep(0.01)
hide()
"""

WORKER = """
import os, subprocess, sys, time
from pathlib import Path
from worker import descendants
from worker.child import Child, Limits

assert descendants.adopt_orphans()
helper = subprocess.Popen(["sleep", "600"])

def start(code, folder):
    command = [sys.executable, "-c", code]
    environment = {"PATH": os.environ["PATH"]}
    return Child(
        command, environment=environment, folder=folder, limits=Limits(data=None, file=1 << 30)
    )

def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

one, two = Path(sys.argv[1]), Path(sys.argv[2])
hide = sys.argv[3]
other = start(hide + "time.sleep(600)", two)
first = start(hide, one)
while not all((folder / "hidden").exists() for folder in (one, two)):
    time.sleep(0.01)
first.has_exited(60)
code = first.finish()
hidden, others = (int((folder / "hidden").read_text()) for folder in (one, two))
print(code, is_alive(hidden), is_alive(others), other.has_exited(), helper.poll())
other.finish()
print(is_alive(others), helper.poll())
helper.kill()
helper.wait()
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("none is left")
"""


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _start(code: str, folder: Path) -> Child:
    return Child(
        [sys.executable, "-c", code],
        environment={"PATH": os.environ["PATH"]},
        folder=folder,
        limits=Limits(data=None, file=1 << 30),
    )


@linux
def test_process_that_hides_from_a_run_that_lives_ends_with_it(tmp_path: Path) -> None:
    child = _start(HIDE + "time.sleep(600)", tmp_path)
    hidden = tmp_path / "hidden"
    while not hidden.exists():
        time.sleep(0.01)
    pid = int(hidden.read_text())
    assert os.getsid(pid) != child.pid
    assert child.finish() == -9
    assert not _is_alive(pid)


@linux
def test_worker_ends_what_a_run_leaves_behind_and_nothing_else(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *map(str, folders), HIDE],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # The hidden one is gone; the other run, what hides from it and the worker's own helper stay.
    told = [line for line in done.stdout.splitlines() if "warning" not in line]
    assert told == ["0 False True False None", "False None", "none is left"], done.stderr
    assert done.stdout.count("left their run's session") == 1
