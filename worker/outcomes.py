"""How an attempt at a job can end, and what is said of its faults."""

import errno
import signal
from dataclasses import dataclass

from sanitizer.errors import Fault, InternalError, OutOfDisk, SanitizerError
from sanitizer.events import ErrorEvent
from sanitizer.exits import Exit
from sanitizer.report.model import Report
from service.jobs.codes import WorkerCode
from service.jobs.service import StoredArtifact


@dataclass(frozen=True)
class Succeeded:
    """The child has left a result, which lies in the store."""

    report: Report
    artifacts: list[StoredArtifact]


@dataclass(frozen=True)
class Failed:
    """Something went wrong."""

    error: ErrorEvent


@dataclass(frozen=True)
class Cancelled:
    """The child was stopped because somebody asked for it."""


@dataclass(frozen=True)
class Released:
    """The child was stopped because this worker is."""


@dataclass(frozen=True)
class Lost:
    """The job is somebody else's: nothing may be written."""


Outcome = Succeeded | Failed | Cancelled | Released | Lost


class Stopped(Exception):
    """The attempt shall not go on."""

    def __init__(self, outcome: Cancelled | Released | Lost) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


class RunFailed(Exception):
    """The attempt failed outside the child."""

    def __init__(self, code: WorkerCode, fault: Fault, message: str, **data: object) -> None:
        super().__init__(message)
        self.event = ErrorEvent(code=code, fault=fault, message=message, data=data)


def bad_result(reason: str) -> RunFailed:
    """The child says it has a result, but it is none."""
    return RunFailed(
        WorkerCode.INVALID_RESULT,
        Fault.MACHINE,
        f"The run left a result that cannot be taken: {reason}.",
    )


def event_of_timeout(limit_seconds: float) -> ErrorEvent:
    """What is said of a run that took too long. It would again, so the input is at fault."""
    return ErrorEvent(
        code=WorkerCode.TIMEOUT,
        fault=Fault.INPUT,
        message=f"The run took longer than the {limit_seconds:g} s that a job may take here. Ask "
        "for fewer epochs or images.",
        data={"limit_seconds": limit_seconds},
    )


def event_of_exit(code: int, stderr: str) -> ErrorEvent:
    """What is said of a child that ended without a last event.

    Args:
        code: Its exit code; negative: the signal that ended it.
        stderr: The end of what it wrote to standard error.
    """
    data: dict[str, object] = {"exit_code": code, "stderr": stderr}
    if code == Exit.UNSUPPORTED:
        return ErrorEvent(
            code=WorkerCode.UNSUPPORTED_INPUT,
            fault=Fault.INPUT,
            message="The run refused what it was given, but its error could not be read.",
            data=data,
        )
    if code >= 0:
        return ErrorEvent(
            code=InternalError.code,
            fault=Fault.MACHINE,
            message=f"The run ended with exit code {code} and without a word on why.",
            data=data,
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    likely_memory = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
    hint = (
        " Most often the memory ran out: lower the batch size, or ask the operator for more."
        if -code in likely_memory
        else ""
    )
    return ErrorEvent(
        code=WorkerCode.CHILD_KILLED,
        fault=Fault.MACHINE,
        message=f"The run was ended by {name}.{hint}",
        data={"signal": name, **data},
    )


def event_of_stuck_child() -> ErrorEvent:
    """What is said of a child that said nothing and cannot be killed."""
    return ErrorEvent(
        code=WorkerCode.CHILD_STUCK,
        fault=Fault.MACHINE,
        message="The run hangs in the operating system and cannot be ended: a disk or a driver of "
        "the worker does not answer.",
    )


def event_of_fault(error: Exception) -> ErrorEvent:
    """What is said of an exception that stopped the supervisor's own work."""
    if isinstance(error, RunFailed):
        return error.event
    if isinstance(error, SanitizerError):
        return ErrorEvent(
            code=error.code, fault=error.fault, message=error.message, data=error.data
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _own_fault(OutOfDisk.code, "The worker's disk is full.", error)
    return _own_fault(InternalError.code, "The worker made a mistake; its log has more.", error)


def _own_fault(code: str, message: str, error: Exception) -> ErrorEvent:
    name = type(error).__name__
    return ErrorEvent(
        code=code, fault=Fault.MACHINE, message=f"{message} ({name})", data={"type": name}
    )
