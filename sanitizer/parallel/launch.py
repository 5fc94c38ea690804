"""Starts the processes that share a run, by the part of torch's launcher that does that, and ends
them together.

`torchrun` is an agent for many machines over this part. On one machine it would add a server that
listens on every interface, and nothing that is needed: nobody joins later, and a run that failed is
not begun again by itself.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sanitizer.errors import ProcessLost
from sanitizer.events import ErrorEvent
from sanitizer.parallel.meeting import Meeting

POLL_SECONDS = 0.1
GRACE_SECONDS = 10
"""Between SIGTERM, which ends a process at once unless its driver hangs, and SIGKILL."""
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals for which torch's launcher ends the processes."""
_PR_SET_PDEATHSIG = 1


def launch(spec: Path, out: Path, work: Path, devices: int, events: TextIO) -> int | ErrorEvent:
    """Runs a specification in several processes, and waits until all have ended.

    Args:
        work: Of the run; gets the folder where they meet.
        events: Where the leader writes its events to.

    Returns:
        The exit code, or why it failed.

    Raises:
        KeyboardInterrupt: SIGINT came; the processes have ended.
    """
    # It takes as long to load as torch: whoever asks for one device has it loaded elsewhere.
    from torch.distributed.elastic.multiprocessing import (
        DefaultLogsSpecs,
        SignalException,
        start_processes,
    )

    meeting = Meeting(work / "processes")
    meeting.prepare()
    safe_path = ["-P"] if sys.flags.safe_path else []
    command = [*safe_path, "-m", "sanitizer", "rank", str(spec)]
    command += ["--out", str(out), "--work", str(work), "--meeting", str(meeting.folder)]
    command += ["--of", str(devices), "--launcher", str(os.getpid()), "--number"]
    try:
        with _own_signals(), _standard_output(events):
            processes = start_processes(
                "sanitizer",
                sys.executable,
                args={rank: (*command, str(rank)) for rank in range(devices)},
                envs={rank: {} for rank in range(devices)},
                logs_specs=DefaultLogsSpecs(os.devnull),
            )
            try:
                result = processes.wait(period=POLL_SECONDS)
            finally:
                processes.close(signal.SIGTERM, GRACE_SECONDS)
        if meeting.code is not None:
            return meeting.code
        codes = {} if result is None else {r: f.exitcode for r, f in result.failures.items()}
        return _why(meeting.error, codes, devices)
    except SignalException as ended:
        if ended.sigval == signal.SIGINT:
            raise KeyboardInterrupt from ended
        os.kill(os.getpid(), ended.sigval)  # as the signal would have ended one process
        raise
    finally:
        meeting.remove()


def end_with_launcher(launcher: int) -> None:
    """Has the kernel end this process when the one that has started it is gone, however it ended.

    For Linux; elsewhere a launcher that is killed leaves its processes to themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes  # here: most runs are one process

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGKILL)


def _why(said: ErrorEvent | None, codes: Mapping[int, int], devices: int) -> ErrorEvent:
    """What is told of a run that failed.

    Args:
        said: What a process has left.
        codes: Exit codes by rank; negative ones are signals, SIGTERM mostly the launcher's own.
    """
    ended = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
    if said is not None and (said.code != ProcessLost.code or not ended):
        return said
    rank = next(iter([*ended, *codes]), 0)
    code = codes.get(rank, 0)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    error = ProcessLost(
        f"Process {rank + 1} of the {devices} that shared the run {how}. Most often the memory ran "
        "out: lower the batch size, or ask for fewer devices.",
        process=rank + 1,
        exit_code=code,
    )
    return ErrorEvent(code=error.code, fault=error.fault, message=error.message, data=error.data)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Puts handlers back that torch's launcher replaces."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _standard_output(events: TextIO) -> Iterator[None]:
    """What is started here writes to `events`; this process itself writes nothing meanwhile."""
    events.flush()
    kept = os.dup(1)
    os.dup2(events.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
