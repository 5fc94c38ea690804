"""What a job can fail by and warn of: names that clients may branch on. Torch-free.

A run tells errors of `sanitizer.errors`; those that its worker or the service tell of it are here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from inspect import getdoc
from typing import Any, Self

from sanitizer import errors
from sanitizer.errors import Fault, InputError, SanitizerError
from sanitizer.warning_codes import WarningCode


class WorkerCode(StrEnum):
    """The code of a failure that is told from outside the run. A name keeps its meaning.

    Attributes:
        faults: Who can be at fault.
        meaning: What happened, in a sentence.
    """

    faults: tuple[Fault, ...]
    meaning: str

    def __new__(cls, code: str, faults: tuple[Fault, ...], meaning: str) -> Self:
        made = str.__new__(cls, code)
        made._value_ = code
        made.faults = faults
        made.meaning = meaning
        return made

    TIMEOUT = "timeout", (Fault.INPUT,), "The run took longer than the operator lets a job take."
    UNSUPPORTED_INPUT = (
        "unsupported_input",
        (Fault.INPUT,),
        "The run refused what it was given, but its error could not be read.",
    )
    FILE_GONE = (
        "file_gone",
        (Fault.INPUT, Fault.MACHINE),
        "A model or data set of the job was deleted, or the worker does not find it in the store.",
    )
    REFERENCE_REFUSED = (
        "reference_refused",
        (Fault.INPUT, Fault.MACHINE),
        "A referenced data set was deleted, or the worker may not or cannot read its folder.",
    )
    STORED_FILE_DAMAGED = (
        "stored_file_damaged",
        (Fault.MACHINE,),
        "A file came out of the store with other bytes than went in.",
    )
    STORE_UNAVAILABLE = (
        "store_unavailable",
        (Fault.MACHINE,),
        "The store did not answer, or did not take the result.",
    )
    INVALID_RESULT = (
        "invalid_result",
        (Fault.MACHINE,),
        "The run left a result that cannot be taken.",
    )
    CHILD_KILLED = (
        "child_killed",
        (Fault.MACHINE,),
        "The run was ended from outside; most often the memory ran out.",
    )
    CHILD_STUCK = (
        "child_stuck",
        (Fault.MACHINE,),
        "The run hangs in the operating system of its worker.",
    )
    WORK_FOLDER_BUSY = (
        "work_folder_busy",
        (Fault.MACHINE,),
        "An earlier attempt at the job still works in its folder.",
    )
    WORKER_LOST = (
        "worker_lost",
        (Fault.MACHINE,),
        "The worker fell silent in the last attempt.",
    )


@dataclass(frozen=True)
class ErrorKind:
    """A way in which a job can fail."""

    code: str
    faults: tuple[Fault, ...]
    meaning: str


def error_kinds() -> list[ErrorKind]:
    """All ways in which a job can fail, those by its input before those by the machine."""
    told_by_the_run = [
        ErrorKind(kind.code, (kind.fault,), " ".join((getdoc(kind) or "").split()))
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, SanitizerError)
        and kind not in (SanitizerError, InputError)
    ]
    told_of_it = [ErrorKind(each.value, each.faults, each.meaning) for each in WorkerCode]
    # In the order of the files otherwise, where kindred ones stand together.
    return sorted(told_by_the_run + told_of_it, key=lambda kind: kind.faults[0] != Fault.INPUT)


def described(meanings: Mapping[str, str]) -> dict[str, Any]:
    """What OpenAPI says of a code: the known ones, and that there may be others.

    No `enum`: to a client that checks answers against it, every new code would be a mistake.
    """
    listed = "\n".join(f"- `{code}`: {meaning}" for code, meaning in meanings.items())
    return {
        "description": "Stable and machine-readable. Later versions may add some: take one that "
        f"you do not know by its `message`. Known today:\n\n{listed}",
        "json_schema_extra": {"x-extensible-enum": list(meanings)},
    }


ERROR_MEANINGS = {kind.code: kind.meaning for kind in error_kinds()}
WARNING_MEANINGS = {code.value: code.meaning for code in WarningCode}
