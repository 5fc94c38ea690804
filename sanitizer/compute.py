"""What a run computes on and in, and how this process is set up for it."""

import ctypes
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.utils.deterministic

from sanitizer.errors import DeviceUnavailable, NotEnoughDevices
from sanitizer.spec import Device, Precision

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from its malloc.h."""


AT_ONCE_SIZE = 3 * 96 * 96
"""Values of the largest images that as many go through a network at a time as of the smallest."""


def images_at_once(shape: Sequence[int], most: int) -> int:
    """How many images a network is given at a time where it is not trained.

    What goes through it together need not fit where batches that are trained on do: those have the
    size that somebody chose for the images at hand.

    Args:
        shape: Of an image: channels, height, width.
        most: Of images up to 96 x 96 with 3 channels; of larger ones fewer, one at least.
    """
    return max(1, min(most, most * AT_ONCE_SIZE // math.prod(shape)))


def choose_device(device: Device, number: int = 0, of: int = 1) -> torch.device:
    """The torch device of a request.

    Args:
        number: Which one, of those that share a run.
        of: How many these are.

    Raises:
        DeviceUnavailable: CUDA was asked for and is not there.
        NotEnoughDevices: Fewer CUDA devices are there than share the run.
    """
    available = torch.cuda.is_available()
    if device is Device.CUDA and not available:
        raise DeviceUnavailable(
            "The request asks for device cuda; this machine has no CUDA device that torch can use. "
            "Ask for cpu or auto, or run it on a GPU worker."
        )
    if not available or device is Device.CPU:
        return torch.device("cpu")
    if of == 1:
        return torch.device("cuda")
    if torch.cuda.device_count() < of:
        raise NotEnoughDevices(of, torch.cuda.device_count(), "CUDA devices that torch can use")
    return torch.device("cuda", number)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that networks compute in while they are trained."""
    match precision:
        case Precision.FLOAT32:
            return torch.float32
        case Precision.BFLOAT16:
            return torch.bfloat16
        case Precision.AUTO:
            return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself, faster than float32.

    Intel's vector units know the instruction (AVX512_BF16) and are a third slower with it than with
    float32; only its matrix units (AMX) gain, which a virtual machine may hide. See
    docs/performance.md.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _multiplies_bfloat16(torch.cpu.get_capabilities())


def _multiplies_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Likewise, of what torch says of a CPU."""
    if capabilities.get("amx_bf16") or capabilities.get("bf16"):
        return True
    return bool(capabilities.get("avx512_bf16")) and "Intel" not in capabilities.get("cpu_name", "")


def computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Lets networks compute in another type than their weights have; float32: as they are."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision)


def prepare(threads: int | None, processes: int = 1) -> None:
    """Sets torch up for the whole process: threads, and the same bits for the same run.

    Args:
        threads: Of all processes that share the run; None: torch's own choice.
        processes: How many these are.
    """
    if threads is not None or processes > 1:
        torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // processes))
    # The same run must give the same bytes; an operation without a deterministic kernel is told of.
    # Not by `use_deterministic_algorithms`, which does the same and imports torch's compiler (1 s).
    torch.set_deterministic_debug_mode("warn")
    # It also fills every new tensor, lest one be read that was never written: a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, for what it allocates next.

    A step allocates and frees the same tensors of some megabytes each time. By default glibc gives
    them back to the kernel, which clears every page when it is touched again: a tenth of a step of
    a WRN-16-1. Memory stays bounded by its peak.

    Returns:
        Whether it could be set: the C library must be glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    never = (1 << 31) - 1
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, never))
    return all(mallopt(name, value) == 1 for name, value in settings)


def device_name(device: torch.device) -> str:
    """What a report calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
