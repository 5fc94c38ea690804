"""Ends the processes that a run leaves behind, wherever they hide.

A process leaves its group and its session by one system call, and its parent by letting it end.
What it cannot leave is the nearest ancestor that adopts orphans (PR_SET_CHILD_SUBREAPER, see
prctl(2)): a run is one, so that all it starts is below it while it lives, and so is the worker, so
that what is left of a run is its child. Nothing but the standard library: `worker.limits` loads
this before every run.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Collection
from contextlib import suppress

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


def find_strays(known: Collection[int]) -> list[Process]:
    """Children of this process that it did not start itself: orphans that it has adopted.

    None in a process that was not told to adopt them: what it starts is nobody's business.

    Args:
        known: Processes that it started in sessions of their own. Others that it started are in its
            own session, which none that has left it can enter again.

    Raises:
        OSError: /proc cannot be read.
    """
    if not _adopts:
        return []
    here, session = os.getpid(), os.getsid(0)
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    processes = [process for number in numbers if (process := _read(number)) is not None]
    return [
        process
        for process in processes
        if process.parent == here and process.session != session and process.pid not in known
    ]


def end_strays(strays: Collection[Process]) -> None:
    """Kills adopted orphans, and takes off the system's list those that have ended.

    Until then their numbers are no other processes': nobody else takes them off.
    """
    for stray in strays:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(stray.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(stray.pid, os.WNOHANG)


def _read(pid: int) -> Process | None:
    """None: it is gone, or hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before, in brackets, may have brackets and spaces of its own.
            state, parent, _, session, *rest = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return Process(pid, int(parent), int(session), int(rest[15]), is_dead=state in (b"Z", b"X"))
