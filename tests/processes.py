"""Processes that tests look at from outside."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
