"""What can go wrong, each with the data a person needs to put it right.

Every error has a stable machine-readable `code` and a `fault`: is the input at fault (the same job
would fail again) or the machine (worth another try)?
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

MAX_LISTED = 500
"""Of the items of a list or mapping in an error's data."""
MAX_TEXT = 500
"""Characters of one name in an error."""


class Fault(StrEnum):
    """Who has to act on an error."""

    INPUT = "input"
    """The model, the data or the request: running it again changes nothing."""
    MACHINE = "machine"
    """The machine it ran on: another try, here or elsewhere, may succeed."""


class SanitizerError(Exception):
    """Base of all errors of the library.

    Attributes:
        message: One or two sentences: what came, what was expected, what to do.
        data: JSON-ready details, for programs.
    """

    code: ClassVar[str] = "internal_error"
    fault: ClassVar[Fault] = Fault.MACHINE

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = {key: _bounded(value) for key, value in data.items()}


class InputError(SanitizerError):
    """The input is at fault."""

    code = "invalid_input"
    fault = Fault.INPUT


# --- The request ---------------------------------------------------------------------------------


class InvalidSpec(InputError):
    """The specification of the job does not validate."""

    code = "invalid_spec"


class ProbeOutsideImage(InputError):
    """A trigger does not lie within the model's input."""

    code = "probe_outside_image"


class ProbeUnreadable(InputError):
    """The picture or generator of a probe cannot be read or does not suit the model's input."""

    code = "probe_unreadable"


class TargetClassOutOfRange(InputError):
    """A probe names a target class that the model does not have."""

    code = "target_class_out_of_range"


# --- The model -----------------------------------------------------------------------------------


class UnsafeCheckpoint(InputError):
    """The file holds code, or names things that only code can make; nothing of it was executed."""

    code = "unsafe_checkpoint"

    def __init__(self, blocked_globals: Sequence[str]) -> None:
        advice = (
            "These are commonly harmless leftovers of training, such as options and counters. Who "
            "has only this file can read it with torch.load(path, weights_only=True) within "
            "torch.serialization.safe_globals([...]) of these names and what else torch asks for, "
            "which runs no code of the file's choosing, and save the weights out of it."
            if all(_is_leftover(name) for name in blocked_globals)
            else "Loading this file runs its code: convert it only in a throw-away container "
            "without network."
        )
        super().__init__(
            "The checkpoint is refused, and nothing in it was executed: its pickle names "
            f"{some(blocked_globals, 20)}. Only tensors in plain containers are accepted. Ask the "
            "sender for the weights alone: torch.save(model.state_dict(), path), or safetensors. "
            f"{advice}",
            blocked_globals=list(blocked_globals),
        )


_LEFTOVERS = frozenset(
    {
        *("argparse.Namespace", "collections.defaultdict", "datetime.datetime", "datetime.date"),
        *("pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"),
        *("numpy.dtype", "numpy.ndarray"),
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
    }
)
"""What training scripts save beside the weights, and what can do nothing but hold values."""


def _is_leftover(name: str) -> bool:
    return name in _LEFTOVERS or name.startswith("numpy.dtypes.")


class UnreadableCheckpoint(InputError):
    """The file is no checkpoint, or a damaged one."""

    code = "unreadable_checkpoint"


class ArchitectureMismatch(InputError):
    """The weights do not fit the architecture the request names."""

    code = "architecture_mismatch"

    def __init__(
        self,
        architecture: str,
        *,
        missing: Sequence[str],
        unexpected: Sequence[str],
        misshaped: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    ) -> None:
        """`misshaped` maps a key to its (expected, received) shapes."""
        parts = []
        if missing:
            parts.append(f"{len(missing)} keys are missing ({some(missing)})")
        if unexpected:
            parts.append(f"{len(unexpected)} keys are unexpected ({some(unexpected)})")
        if misshaped:
            shapes = [f"{k}: {list(e)} expected, {list(r)} came" for k, (e, r) in misshaped.items()]
            parts.append(f"{len(misshaped)} keys have another shape ({some(shapes)})")
        super().__init__(
            f"The weights do not fit {architecture}: {'; '.join(parts)}. Name the architecture the "
            "weights were trained with, or 'auto'.",
            architecture=architecture,
            missing=list(missing),
            unexpected=list(unexpected),
            misshaped={
                k: {"expected": list(e), "received": list(r)} for k, (e, r) in misshaped.items()
            },
        )


class ArchitectureUnknown(InputError):
    """No architecture, or more than one, fits the weights; or the name is not in the catalog."""

    code = "architecture_unknown"

    def __init__(self, message: str, *, closest: Sequence[Mapping[str, Any]]) -> None:
        """`closest` holds the best candidates, each with name and counts of differing keys."""
        super().__init__(message, closest=[dict(c) for c in closest])


# --- The data ------------------------------------------------------------------------------------


class DataUnreadable(InputError):
    """The data set has no layout that is known, or a file in it is damaged."""

    code = "data_unreadable"


class UnsafeArchive(InputError):
    """The archive breaks a limit, or reaches out of its folder."""

    code = "unsafe_archive"


class CorruptImage(InputError):
    """One image among the others cannot be decoded."""

    code = "corrupt_image"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"The image {name} cannot be decoded: {reason}. Remove or replace it and upload the "
            "data again.",
            image=name,
            reason=reason,
        )


class ClassMismatch(InputError):
    """The classes of the data are not those of the model."""

    code = "class_mismatch"


class EmptyClass(InputError):
    """A class has no image."""

    code = "empty_class"


class NotEnoughImages(InputError):
    """Fewer images than the request or the method needs."""

    code = "not_enough_images"


# --- The run -------------------------------------------------------------------------------------


class ImagesTooLarge(InputError):
    """The images, decoded, are more than a run may write into one file."""

    code = "images_too_large"


class TrainingDiverged(InputError):
    """The loss became infinite or not a number."""

    code = "training_diverged"


class DeviceUnavailable(SanitizerError):
    """The device the request names is not on this machine."""

    code = "device_unavailable"


class NotEnoughDevices(InputError):
    """The request asks for more devices than this machine, or this worker, has."""

    code = "not_enough_devices"

    def __init__(self, wanted: int, available: int, what: str) -> None:
        """`what` is what is counted, and where: `CUDA devices that torch can use here`."""
        super().__init__(
            f"The request asks for {wanted} devices, and there are {available} {what}. Ask for "
            f"{available or 1} at most, or run it where there are more.",
            wanted=wanted,
            available=available,
        )


class ProcessLost(SanitizerError):
    """One of the processes that share a run has ended without a word, or cannot be reached."""

    code = "process_lost"


class OutOfMemory(SanitizerError):
    """Host or device memory ran out."""

    code = "out_of_memory"


class OutOfDisk(SanitizerError):
    """The disk of the job's folder is full."""

    code = "out_of_disk"


class InternalError(SanitizerError):
    """A fault of our own."""

    code = "internal_error"


def some(items: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(_bounded(item) for item in items[:limit]) or "nothing"
    return shown if len(items) <= limit else f"{shown}, and {len(items) - limit} more"


def _bounded(value: Any) -> Any:
    """The first `MAX_LISTED` of a long list, with a note of how many came; the rest as it is.

    Names come from strangers' files: an error must fit into one event, however many there are.
    """
    match value:
        case str():
            return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "..."
        case list() | tuple():
            kept = [_bounded(item) for item in value[:MAX_LISTED]]
            more = len(value) - len(kept)
            return [*kept, f"... and {more} more"] if more else kept
        case dict():
            kept_items = list(value.items())[:MAX_LISTED]
            return {_bounded(key): _bounded(item) for key, item in kept_items}
        case _:
            return value
