"""Ends the processes that a run has started, wherever they hide.

A process leaves its group and its session by one system call, and its parent by letting it end.
What it cannot leave is the nearest ancestor that adopts orphans (PR_SET_CHILD_SUBREAPER, see
prctl(2)): a run is one, so that all below it is found while it lives, and so is the worker, for
what a run leaves behind. Nothing but the standard library: `worker.limits` loads this before every
run.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress

PASSES_SECONDS = 5.0
"""How long it is tried with processes that start new ones as fast as they are killed."""

_PR_SET_CHILD_SUBREAPER = 36

_adopts = False


class Process:
    """What /proc tells of one.

    Attributes:
        began: In ticks after the machine's start: with the number it names a process for good.
    """

    __slots__ = ("began", "is_dead", "parent", "pid", "session")

    def __init__(self, pid: int, parent: int, session: int, began: int, *, is_dead: bool) -> None:
        self.pid = pid
        self.parent = parent
        self.session = session
        self.began = began
        self.is_dead = is_dead


def adopt_orphans() -> bool:
    """Makes this process the parent of its descendants' orphans, across exec too, not across fork.

    Returns:
        Whether the system knows how.
    """
    global _adopts  # a property of the process, as it is the kernel's
    if sys.platform == "linux":
        arguments = map(ctypes.c_ulong, (1, 0, 0, 0))
        _adopts = bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, *arguments) == 0)
    return _adopts


def kill_below(pid: int) -> None:
    """Kills all descendants of a process that lives; it is stopped first and stays so."""
    deadline = time.monotonic() + PASSES_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGSTOP)  # it starts no more of them
    while (found := _find_below(pid)) and time.monotonic() < deadline:
        for process in found:
            _kill(process)
        time.sleep(0.001)


def find_strays(known: Collection[int]) -> list[Process]:
    """Children of this process that it did not start itself: orphans that it has adopted.

    None in a process that was not told to adopt them: what it starts is nobody's business.

    Args:
        known: Processes that it started in sessions of their own. Others that it started are in its
            own session, which none that has left it can enter again.
    """
    if not _adopts:
        return []
    here, session = os.getpid(), os.getsid(0)
    return [
        process
        for process in _find_all()
        if process.parent == here and process.session != session and process.pid not in known
    ]


def end_strays(strays: Collection[Process]) -> None:
    """Kills adopted orphans, and takes off the system's list those that have ended."""
    for stray in strays:
        if not stray.is_dead:
            _kill(stray)
        with suppress(ChildProcessError):
            os.waitpid(stray.pid, os.WNOHANG)


def _find_below(pid: int) -> list[Process]:
    """All descendants that live, parents before their children."""
    children: dict[int, list[Process]] = {}
    for process in _find_all():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    generation = children.get(pid, [])
    while generation:
        found += generation
        generation = [below for process in generation for below in children.get(process.pid, [])]
    return [process for process in found if not process.is_dead]


def _find_all() -> list[Process]:
    """Every process that can be seen; none without /proc."""
    with suppress(FileNotFoundError):
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [process for number in numbers if (process := _read(number)) is not None]
    return []


def _read(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before, in brackets, may have brackets and spaces of its own.
            state, parent, _, session, *rest = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it has ended meanwhile
    return Process(pid, int(parent), int(session), int(rest[15]), is_dead=state in (b"Z", b"X"))


def _kill(process: Process) -> None:
    """Not another one that has got its number meanwhile."""
    with suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(process.pid)
        try:
            now = _read(process.pid)
            if now is not None and now.began == process.began:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
