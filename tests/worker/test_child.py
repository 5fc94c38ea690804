"""Child processes: started, read, ended for certain."""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sanitizer.events import (
    Event,
    MetricEvent,
    ProgressEvent,
    ResultEvent,
    Stage,
    StageEvent,
    to_line,
)
from worker.child import MAX_LINE_BYTES, TAIL_BYTES, Child, Limits

LINE = to_line(ProgressEvent(stage=Stage.LOAD, fraction=0.5)).encode()


class Starter:
    """Starts children that run a line of Python, and ends them after the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def __call__(self, code: str, **options: object) -> Child:
        child = Child(
            [sys.executable, "-c", code],
            environment={"PATH": os.environ["PATH"]},
            folder=self._folder,
            limits=Limits(data=None, file=1 << 30),
            **options,  # type: ignore[arg-type]  # keep_open alone
        )
        self._stack.callback(child.finish)
        return child


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    with ExitStack() as stack:
        yield Starter(tmp_path, stack)


def _hear_out(child: Child) -> list[float]:
    """Fractions of all progress events of a child."""
    heard: list[float] = []
    while True:
        over = not child.is_heard
        events = child.take_events()
        heard += [event.fraction for event in events if isinstance(event, ProgressEvent)]
        if over and not events:
            return heard
        time.sleep(0.01)


def test_events_come_one_a_line(start: Starter) -> None:
    child = start(f"import sys; sys.stdout.buffer.write({LINE!r} * 3)")
    assert _hear_out(child) == [0.5] * 3
    assert child.finish() == 0


def test_line_that_is_too_long_costs_no_other_line(start: Starter) -> None:
    junk = f"b'x' * {3 * MAX_LINE_BYTES + 7} + b'\\n'"
    child = start(f"import sys; w = sys.stdout.buffer.write; w({LINE!r} + {junk} + {LINE!r})")
    assert _hear_out(child) == [0.5] * 2


def test_last_line_without_an_end_is_read(start: Starter) -> None:
    child = start(f"import sys; sys.stdout.buffer.write({LINE.rstrip()!r})")
    assert _hear_out(child) == [0.5]


def test_of_a_child_that_tells_too_much_the_end_is_still_heard(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.child.MAX_STORY_ROWS", 10)
    figures = to_line(
        MetricEvent(stage=Stage.TEACHER, epoch=1, values={"loss": 1, "a": 0})
    ).encode()
    last = to_line(ResultEvent(artifacts=[])).encode()
    child = start(
        f"import sys; w = sys.stdout.buffer.write; w({figures!r} * 9 + {LINE!r} + {last!r} * 100);"
        "w(b'x' * 10_000_000)"
    )
    heard: list[Event] = []
    while child.is_heard:
        heard += child.take_events()
    heard += child.take_events()
    assert [event.type for event in heard] == [
        *("metric", "metric", "metric", "warning", "progress", "result"),
    ]


def test_child_may_tell_so_many_bytes(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.child.MAX_STORY_BYTES", 10_000)
    line = to_line(StageEvent(stage=Stage.TEACHER, message="x" * 3_000)).encode()
    child = start(f"import sys; sys.stdout.buffer.write({line!r} * 9)")
    while child.is_heard:
        time.sleep(0.01)
    assert [event.type for event in child.take_events()] == ["stage"] * 3 + ["warning"]


def test_of_standard_error_the_end_is_kept(start: Starter) -> None:
    child = start("import sys; sys.stderr.write('x' * 1_000_000 + 'the end')")
    assert _hear_out(child) == []
    child.finish()
    assert child.error_tail().endswith("the end")
    assert len(child.error_tail(10 * TAIL_BYTES)) <= TAIL_BYTES + 8192


def test_child_that_is_asked_to_stop_gets_time_for_it(start: Starter) -> None:
    child = start(
        # Without a buffer: the signal may come while the first line is still being written.
        "import os, signal, sys, time\n"
        f"def end(*_): os.write(1, {LINE!r}); sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"os.write(1, {LINE!r})\n"
        "time.sleep(600)"
    )
    while not child.take_events():
        time.sleep(0.01)
    child.stop(grace_seconds=20)
    assert _hear_out(child) == [0.5]
    assert child.finish() == 5


def test_exit_by_a_signal_is_a_negative_code(start: Starter) -> None:
    child = start("import time; time.sleep(600)")
    child.kill()
    assert child.has_exited(5)
    assert child.finish() == -9


def test_child_ends_when_its_standard_input_closes(start: Starter) -> None:
    child = start("import os; os.read(0, 1)")
    assert not child.has_exited(0.2)
    child._process.stdin.close()  # type: ignore[union-attr]  # as if this process had died
    assert child.has_exited(20)


def test_child_holds_the_lock_it_was_given_for_as_long_as_it_lives(
    start: Starter, tmp_path: Path
) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    child = start("import time; print(flush=True); time.sleep(600)", keep_open=[lock])
    os.close(lock)
    again = os.open(tmp_path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.finish()
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)


def test_descendant_in_a_session_of_its_own_does_not_block(
    start: Starter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("worker.child.JOIN_SECONDS", 0.3)
    child = start(
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    )
    assert child.has_exited(20)
    began = time.monotonic()
    assert child.finish() == 0
    assert time.monotonic() - began < 10
    os.kill(int((tmp_path / "pid").read_text()), 9)
    for thread in threading.enumerate():
        if thread.name == f"child {child.pid}":
            thread.join(10)
    child.finish()


def test_limits_hold_in_the_child(start: Starter) -> None:
    child = start(
        "import resource as r, sys\n"
        "sys.stderr.write(str((r.getrlimit(r.RLIMIT_CORE)[0], r.getrlimit(r.RLIMIT_FSIZE)[0])))"
    )
    assert _hear_out(child) == []
    child.finish()
    assert child.error_tail() == f"(0, {1 << 30})"
