"""What is installed is what the locks name: one version, by its hash, from no address of ours."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
EACH = pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.name))

PINNED = re.compile(r"[\w.-]+==[\w.+!-]+( ;.*?)?( +--hash=sha256:[0-9a-f]{64})+ *")


def _entries(lock: Path) -> list[str]:
    """A requirement with its hashes, joined to one line each."""
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


@EACH
def test_every_requirement_is_one_version_with_hashes(lock: Path) -> None:
    entries = _entries(lock)
    loose = [
        entry
        for entry in entries
        if not re.match(
            r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+( ;.*?)?( +--hash=sha256:[0-9a-f]{64})+ *$", entry
        )
    ]
    assert entries
    assert loose == []


@EACH
def test_lock_names_no_address(lock: Path) -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@ ", lock.read_text("utf-8"))
