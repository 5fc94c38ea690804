"""The child process of a job: started under limits, read line by line, ended for certain."""

import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Full, Queue

import structlog
from pydantic import ValidationError

from sanitizer import events
from sanitizer.events import (
    ErrorEvent,
    Event,
    MetricEvent,
    ProgressEvent,
    ResultEvent,
    WarningEvent,
)
from sanitizer.warning_codes import WarningCode
from worker import descendants
from worker.isolation import Allowed

MAX_LINE_BYTES = 1 << 20
MAX_WAITING_EVENTS = 10_000
"""Read ahead of the database; after that the child waits for its pipe."""
MAX_STORY_BYTES = 16 << 20
MAX_STORY_ROWS = 100_000
"""What one child may tell, in lines and in rows of the database; a figure is a row, too.

Far more than a run over thousands of classes tells. Short lines of progress do not count: of those
that come in a row one is kept.
"""
SHORT_BYTES = 1 << 10
TAIL_BYTES = 16 << 10
MAX_GARBAGE_LOGGED = 20
JOIN_SECONDS = 5.0
REAP_SECONDS = 30.0
"""How long a killed child may take to end: one that waits for a disk or a driver may never."""
LIMITS_PROGRAM = Path(__file__).with_name("limits.py")

log = structlog.get_logger(__name__)

_changes = threading.Lock()
"""Held while a child begins or is reaped: until then `_running` does not say how it is."""
_running: set[int] = set()
"""Numbers of the children that were started and not reaped yet."""
_lasting: set[tuple[int, int]] = set()
"""Strays that could not be ended, by number and time of their start."""


@dataclass(frozen=True)
class Limits:
    """What a child may use; memory and files in bytes.

    Attributes:
        data: Private memory (RLIMIT_DATA). None: no limit, since CUDA reserves what it never uses.
        file: Size of one file.
        allowed: The files that it may touch. None: all that this process may, and the network.
    """

    data: int | None
    file: int
    allowed: Allowed | None = None


class Child:
    """A running child in a session of its own.

    Its standard input is a pipe that this process holds: it closes however this process ends, and
    tells the child to end too.

    Args:
        command: Program and arguments.
        environment: The whole environment.
        folder: Its working folder.
        keep_open: File descriptors that it shall hold while it lives.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        limits: Limits,
        keep_open: Sequence[int] = (),
    ) -> None:
        wrapped = [
            *(sys.executable, "-I", "-S", str(LIMITS_PROGRAM)),
            json.dumps(asdict(limits)),
            *command,
        ]
        with _changes:
            self._process = subprocess.Popen(
                wrapped,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
            self.pid = self._process.pid
            _running.add(self.pid)
        self._events: Queue[Event] = Queue(MAX_WAITING_EVENTS)
        self._tail: deque[bytes] = deque()
        self._garbage_lines = 0
        self._story_bytes = 0
        self._story_rows = 0
        self._abandoned = threading.Event()
        self._readers = [
            threading.Thread(
                # Threads begin without the job's fields for the log.
                target=contextvars.copy_context().run,
                args=(read,),
                name=f"child {self.pid}",
                daemon=True,
            )
            for read in (self._read_events, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def take_events(self, limit: int = 1000) -> list[Event]:
        """Events that have come, at most `limit`, without waiting."""
        taken: list[Event] = []
        with suppress(Empty):
            while len(taken) < limit:
                taken.append(self._events.get_nowait())
        return taken

    def has_exited(self, wait_seconds: float = 0.0) -> bool:
        """Whether it has ended; it is not reaped, so that its group can still be addressed."""
        deadline = time.monotonic() + wait_seconds
        while True:
            if self._process.returncode is not None:
                return True
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.pid, options) is not None:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(0.05, left))

    @property
    def is_heard(self) -> bool:
        """Whether its pipes are still read: more events may come, also after it has exited."""
        return any(reader.is_alive() for reader in self._readers)

    def stop(self, grace_seconds: float) -> None:
        """Asks the child and its descendants to end; kills those that have not in that time."""
        self._signal_group(signal.SIGTERM)
        self.has_exited(grace_seconds)
        self._signal_group(signal.SIGKILL)
        self.has_exited(JOIN_SECONDS)

    def kill(self) -> None:
        """Ends the child and its group at once; of one that has exited also what left its group."""
        self._signal_group(signal.SIGKILL)
        if self.has_exited():
            _end_strays(self.pid)

    def finish(self) -> int | None:
        """Reaps the child, which is killed if it still runs, and gives its exit code.

        A negative code is the number of the signal that ended it; none: it cannot be ended, see
        `wait`. Take the events before, until it is not heard any more: what has not been read by
        then is lost.
        """
        self._signal_group(signal.SIGKILL)
        if not self.has_exited(REAP_SECONDS):
            self._abandoned.set()
            return None
        return self.wait()

    def wait(self) -> int:
        """As `finish`, for a child that was killed, and for as long as it takes."""
        if self._process.returncode is None:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with _changes:
                self._process.wait()
                _running.discard(self.pid)
            _end_strays(self.pid)
        code = self._process.wait()
        self._abandoned.set()
        for reader in self._readers:
            # A descendant that could not be ended may hold the pipes open: it is not waited for.
            reader.join(JOIN_SECONDS)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if not self.is_heard:
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()
        return code

    def error_tail(self, characters: int = 4000) -> str:
        """The end of what it wrote to standard error."""
        return b"".join(list(self._tail)).decode("utf-8", "replace")[-characters:]

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process.returncode is None:  # after that the number may be another process's
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _read_events(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        while line := stream.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
                self._note_garbage(line, "longer than a line may be")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                continue
            try:
                event = events.parse(line)
            except ValidationError:
                self._note_garbage(line, "no event")
                continue
            if isinstance(event, ResultEvent | ErrorEvent):
                self._put(event)
                break
            if self._may_tell(event, len(line)):
                self._put(event)
        while stream.read(MAX_LINE_BYTES):
            pass  # nothing counts after the last event, but a full pipe would stop the child

    def _put(self, event: Event) -> None:
        while not self._abandoned.is_set():
            with suppress(Full):
                self._events.put(event, timeout=1.0)
                break

    def _may_tell(self, event: Event, bytes_: int) -> bool:
        """Whether there is room for an event in what a child may tell; says so once if not."""
        if isinstance(event, ProgressEvent) and bytes_ <= SHORT_BYTES:
            return True
        was_full = self._is_full
        self._story_bytes += bytes_
        self._story_rows += 1 + (len(event.values) if isinstance(event, MetricEvent) else 0)
        if self._is_full and not was_full:
            message = (
                "The run tells more than is kept of one; from here on its figures are left out."
            )
            log.warning(message, pid=self.pid)
            self._put(WarningEvent(code=WarningCode.STORY_TOO_LONG, message=message))
        return not self._is_full

    @property
    def _is_full(self) -> bool:
        return self._story_bytes > MAX_STORY_BYTES or self._story_rows > MAX_STORY_ROWS

    def _read_errors(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        kept = 0
        while chunk := os.read(stream.fileno(), 8192):
            self._tail.append(chunk)
            kept += len(chunk)
            while kept - len(self._tail[0]) >= TAIL_BYTES:
                kept -= len(self._tail.popleft())

    def _note_garbage(self, line: bytes, reason: str) -> None:
        self._garbage_lines += 1
        if self._garbage_lines <= MAX_GARBAGE_LOGGED:
            log.warning(
                "a line of the child is no event",
                pid=self.pid,
                reason=reason,
                line=repr(line[:200]),
            )


def _end_strays(session: int) -> None:
    """Ends what runs that are over have left behind, and this process has adopted.

    Args:
        session: That of the run which is over: what is left in it has been killed already.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    told: set[int] = set()
    try:
        while True:
            with _changes:
                known = {session, *_running}
                strays = descendants.find_strays(_running)
                descendants.end_strays(strays)
            left = {(it.pid, it.began) for it in strays} - _lasting
            if not left:
                return
            fled = {it.pid for it in strays if not it.is_dead and it.session not in known} - told
            if fled:
                log.warning("ends processes that have left their run's session", pids=sorted(fled))
                told |= fled
            if time.monotonic() >= deadline:
                # Waiting for a disk or a driver, or another user's: the next run waits no more.
                log.error("processes that a run left cannot be ended", pids=sorted(dict(left)))
                _lasting.update(left)
                return
            time.sleep(0.01)
    except OSError as error:
        log.warning("processes that a run may have left cannot be looked for", reason=str(error))
