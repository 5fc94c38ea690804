"""Reads the lock files in `requirements/`: which versions they name."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


class LockError(ValueError):
    """A line of a lock is no version with its hashes."""


def read_lock(path: Path) -> dict[str, set[Version]]:
    """Versions by canonical name; several where the lock tells platforms or Pythons apart.

    Raises:
        LockError: An entry names no one version, or has no hash.
    """
    locked: dict[str, set[Version]] = {}
    for entry in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        spelled, *hashes = entry.partition("#")[0].strip().split(" --hash=")
        if not spelled:
            continue
        requirement = Requirement(spelled)
        pins = list(requirement.specifier)
        if len(pins) != 1 or pins[0].operator != "==" or not hashes:
            raise LockError(f"{path}: expected NAME==VERSION with hashes, got {spelled!r}.")
        locked.setdefault(canonicalize_name(requirement.name), set()).add(Version(pins[0].version))
    return locked
