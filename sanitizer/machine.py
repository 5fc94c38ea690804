"""What a process has taken of its machine so far."""

import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_resident_bytes() -> int:
    """Most memory that this process had resident at a time, mapped files included.

    From the kernel's own high-water mark where it can be read. A process that is shut in may not;
    what `getrusage` says then holds for what the process was before it became this program too.
    """
    with suppress(OSError, ValueError, LookupError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor_name() -> str:
    """What the CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "cpu"
