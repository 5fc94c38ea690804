"""What a run computes on and in, and how this process is set up for it."""

import ctypes
import sys

import torch
import torch.utils.deterministic

from sanitizer.errors import DeviceUnavailable
from sanitizer.spec import Device, Precision

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt, from its malloc.h."""
HEAP_STEP_BYTES = 64 << 20


def choose_device(device: Device) -> torch.device:
    """The torch device of a request.

    Raises:
        DeviceUnavailable: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if device is Device.CUDA and not available:
        raise DeviceUnavailable(
            "The request asks for device cuda; this machine has no CUDA device that torch can use. "
            "Ask for cpu or auto, or run it on a GPU worker."
        )
    return torch.device("cuda" if available and device is not Device.CPU else "cpu")


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
    """Whether the device multiplies bfloat16 itself; where it does not, float32 is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def prepare(threads: int | None) -> None:
    """Sets torch up for the whole process: threads, and the same bits for the same run."""
    if threads is not None:
        torch.set_num_threads(threads)
    # The same run must give the same bytes; an operation without a deterministic kernel is told of.
    torch.use_deterministic_algorithms(True, warn_only=True)
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
    settings = (
        (M_MMAP_THRESHOLD, 1 << 30),
        (M_TRIM_THRESHOLD, never),
        (M_TOP_PAD, HEAP_STEP_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


def device_name(device: torch.device) -> str:
    """What a report calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
