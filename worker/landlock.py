"""Shuts a process into the files it is told of, out of TCP and away from processes beside it.

Linux's Landlock, by its system calls: https://docs.kernel.org/userspace-api/landlock.html. Nothing
but the standard library, and of that little: `worker.limits` loads this before every run.
"""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Mapping, Sequence

# As in <linux/landlock.h>
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The others are of folders; the kernel refuses a rule that gives them to a file."""

HANDLED = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
"""Since which version of the interface the kernel withholds which rights to files."""
TCP = (4, 1 << 0 | 1 << 1)
"""To bind and to connect."""
SCOPES = (6, 1 << 0 | 1 << 1)
"""Abstract Unix sockets, and signals."""

RIGHTS = {
    "programs": EXECUTE | READ_FILE | READ_DIR,
    "read": READ_FILE | READ_DIR,
    "names": READ_DIR,
    # No links, pipes, sockets and devices, and what is written there cannot be started.
    "write": (
        (READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE)
        | (REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER)
    ),
    "devices": READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV,
}
"""What each kind of path allows, there and beneath it."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every processor that torch knows
_GET_VERSION = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38


def find_version() -> int:
    """The version of Landlock's interface in this kernel; 0: it has none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    try:
        return _system_call(_CREATE_RULESET, None, 0, _GET_VERSION)
    except OSError:
        return 0


def restrict(allowed: Mapping[str, Sequence[str]], *, tcp: bool = False) -> None:
    """Leaves this process and its descendants what is allowed, as far as the kernel can tell.

    What is open stays open. The process may read what is below its own folder in /proc.

    Args:
        allowed: Paths by the names in `RIGHTS`; one that cannot be reached is passed over.
        tcp: Leaves it TCP, to and from anywhere.

    Raises:
        OSError: The kernel has no Landlock, or a path is a link.
    """
    version = _system_call(_CREATE_RULESET, None, 0, _GET_VERSION)
    handled = sum(rights for since, rights in HANDLED if version >= since)
    beyond_files = [
        what if version >= since else 0 for since, what in ((TCP[0], 0) if tcp else TCP, SCOPES)
    ]
    # A kernel that knows a shorter structure takes this one, as long as the rest is zeros.
    structure = struct.pack("=QQQ", handled, *beyond_files)
    ruleset = _system_call(_CREATE_RULESET, structure, len(structure), 0)
    _allow(ruleset, f"/proc/{os.getpid()}", handled & RIGHTS["read"])
    for kind, paths in allowed.items():
        for path in paths:
            _allow(ruleset, path, handled & RIGHTS[kind])
    _library().prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _system_call(_RESTRICT_SELF, ruleset, 0)  # refused if the line before failed
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # the process could not use it either
    kind = os.fstat(opened).st_mode
    if stat.S_ISLNK(kind):
        raise OSError(f"{path} is a link, where its target was expected")
    if not stat.S_ISDIR(kind):
        rights &= OF_A_FILE
    _system_call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
    if path.startswith("/proc/"):
        # A rule holds for an inode, and /proc makes a new one once it has forgotten an unused
        # entry: the process keeps it in use.
        os.set_inheritable(opened, True)
    else:
        os.close(opened)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    """Raises `OSError` where the kernel gives one."""
    longs = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result: int = _library().syscall(ctypes.c_long(number), *longs)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library
