"""What a run starts ends with it, wherever it hides."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.worker.conftest import ROOT

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
from tests.processes import is_alive
from tests.waiting import wait_until
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

one, two = Path(sys.argv[1]), Path(sys.argv[2])
hide = sys.argv[3]
other = start(hide + "time.sleep(600)", two)
first = start(hide, one)
wait_until(lambda: all((folder / "hidden").exists() for folder in (one, two)))
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


@linux
def test_what_hides_from_a_run_ends_with_it_and_nothing_else_does(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *map(str, folders), HIDE],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    # The hidden one is gone; the other run, what hides from it and the worker's own helper stay.
    told = [line for line in done.stdout.splitlines() if "warning" not in line]
    assert told == ["0 False True False None", "False None", "none is left"], done.stderr
    assert done.stdout.count("left their run's session") == 2
