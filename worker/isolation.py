"""What a run may touch: its own folders, and what Python and torch need of the system.

The child reads what strangers made, as the same user as this worker. Should a file take it over, it
finds neither the worker's passwords nor other jobs' folders, and no way to the network by TCP.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

import sanitizer
from service.settings import Settings
from worker.folders import JobFolder

SYSTEM = (
    *("/bin", "/lib", "/lib32", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64"),
    *("/usr/libexec", "/usr/share", "/usr/local/bin", "/usr/local/lib", "/usr/local/lib64"),
    *("/usr/local/share", "/nix/store", "/gnu/store"),
)
"""Programs and libraries. Not all of /usr: it has room for an operator's own files."""
SYSTEM_FILES = (
    # Not all of /etc: passwords of other programs lie there.
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload"),
    *("/etc/localtime", "/etc/timezone", "/etc/fonts", "/var/cache/fontconfig"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/mime.types", "/etc/os-release"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/filesystems"),
    *("/proc/version", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/random"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/vm/max_map_count"),
    *("/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

CUDA_PROGRAMS = ("/usr/local/cuda", "/usr/local/nvidia", "/opt/cuda")
CUDA_FILES = (
    *("/proc/driver/nvidia", "/proc/driver/nvidia-caps", "/proc/devices", "/proc/modules"),
    *("/proc/sys/vm/mmap_min_addr", "/sys"),
)
CUDA_DEVICES = ("nvidia*", "dxg")
"""Below /dev; the second one is that of WSL."""
CUDA_FOLDERS = ("/dev/shm",)
TCP_FILES = ("/sys/bus/pci/devices", "/sys/class/net", "/sys/devices")
"""Gloo looks for the network card of an interface, and fails where it may not."""

NEEDED = (
    (1, "5.13", "the files of this worker and of other jobs"),
    (3, "6.2", "cutting other files to length zero"),
    (4, "6.7", "TCP"),
    (5, "6.10", "commands to devices (ioctl)"),
    (6, "6.12", "signals to other processes, abstract Unix sockets"),
)
"""Since which version of Landlock's interface, and which Linux, a run is kept from what."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Allowed:
    """Files and folders that a child may use, and what is below them; `landlock.RIGHTS` has how.

    Attributes:
        names: Folders that it may list, without reading a file.
        tcp: Whether it may use TCP. The kernel tells ports apart, not addresses.
    """

    programs: tuple[str, ...]
    read: tuple[str, ...]
    names: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]
    tcp: bool = False


class IsolationMissing(Exception):
    """The operator requires what this machine's kernel does not have.

    Attributes:
        missing: What a run could not be kept from.
    """

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(
            "SANITIZER_CHILD_ISOLATION is `required`, but this kernel cannot keep a run from: "
            f"{'; '.join(missing)}. That takes Linux {NEEDED[-1][1]} with Landlock switched on "
            "(`landlock` in the kernel's `lsm=`, and a container runtime that lets its system "
            "calls pass). `auto` goes on with what there is."
        )
        self.missing = missing


def find_missing(version: int) -> list[str]:
    """What a run cannot be kept from, on a kernel with this version of Landlock's interface."""
    return [what for since, _, what in NEEDED if version < since]


def require(settings: Settings, version: int) -> None:
    """For the start of a worker.

    Raises:
        IsolationMissing: What the settings require is not to be had.
    """
    missing = find_missing(version)
    if settings.child_isolation == "required" and missing:
        raise IsolationMissing(missing)


def is_on(settings: Settings, version: int, *, uses_cuda: bool = False) -> bool:
    """Whether runs are shut in.

    A command of the operator's own is let alone unless it is `required`: it may be a sandbox, which
    could not mount anything any more, and may lie anywhere. So is a run on a CUDA device: what the
    driver needs was not tried on one yet, and a guess would stop every job of a worker.
    """
    if settings.child_isolation == "auto":
        return version > 0 and not settings.child_command and not uses_cuda
    return settings.child_isolation == "required"


def report(settings: Settings, version: int, *, uses_cuda: bool = False) -> None:
    """Logs once what runs are not kept from."""
    missing = find_missing(version)
    if is_on(settings, version) and not is_on(settings, version, uses_cuda=uses_cuda):
        log.warning("runs on CUDA are not shut into their folders: `required` tries it")
    elif is_on(settings, version):
        if missing:
            log.warning("runs are shut in, but not as well as they could be", missing=missing)
    elif settings.child_command:
        log.info("runs are not shut in: that is left to SANITIZER_CHILD_COMMAND")
    else:
        log.warning(
            "runs are not shut into their folders",
            child_isolation=settings.child_isolation,
            missing=missing,
        )


def find_allowed(
    folder: JobFolder, roots: Iterable[Path], *, uses_cuda: bool, uses_tcp: bool = False
) -> Allowed:
    """What the run in this folder may use.

    Args:
        roots: Folders that references of data sets may point into.
    """
    package = Path(sanitizer.__file__).resolve().parent
    programs = [*SYSTEM, *_python(), *_library_path()]
    files = [*SYSTEM_FILES, str(package), *map(str, roots)]
    if uses_tcp:
        files += TCP_FILES
    devices = list(DEVICES)
    write: list[str] = []
    if uses_cuda:
        programs += CUDA_PROGRAMS
        files += CUDA_FILES
        devices += [str(path) for name in CUDA_DEVICES for path in Path("/dev").glob(name)]
        write += CUDA_FOLDERS
    # The job's own are not resolved: what an earlier run may have put there is not followed.
    return Allowed(
        programs=_resolved(programs),
        read=(*_resolved(files), str(folder.spec), str(folder.input)),
        # Python lists the folder that it finds a package in: of a checkout that is the checkout.
        names=(str(package.parent),),
        write=(*_resolved(write), str(folder.out), str(folder.work), str(folder.home)),
        devices=_resolved(devices),
        tcp=uses_tcp,
    )


def _python() -> list[str]:
    """Where this Python and the packages that are installed for it lie."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [sys.executable, *sorted(prefixes - {"/usr", "/usr/local"}), *packages]


def _library_path() -> list[str]:
    """The child inherits it; see `worker.supervisor.INHERITED`."""
    return [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path[:1] == "/"]


def _resolved(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths))
