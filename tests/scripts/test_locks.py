from pathlib import Path

import pytest

from scripts.locks import LockError, read_lock

ROOT = Path(__file__).parents[2]
HASH = f"--hash=sha256:{'0' * 64}"


def test_every_version_is_read_whatever_machine_it_is_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# a comment\n"
        f"NumPy==2.4.6 ; python_full_version < '3.12' \\\n    {HASH} \\\n    {HASH}\n"
        f"numpy==2.5.5 ; python_full_version >= '3.12' \\\n    {HASH}\n"
        f"colorama==0.4.6 ; sys_platform == 'win32' \\\n    {HASH}\n"
    )

    locked = read_lock(lock)

    assert set(locked) == {"numpy", "colorama"}
    assert {str(version) for version in locked["numpy"]} == {"2.4.6", "2.5.5"}


@pytest.mark.parametrize(
    "entry", ["numpy==2.4.6", f"numpy {HASH}", f"numpy>=2 {HASH}", f"numpy>=2,<3 {HASH}"]
)
def test_entry_that_is_no_version_with_hashes_is_refused(entry: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"{entry}\n")

    with pytest.raises(LockError, match=r"expected NAME==VERSION with hashes, got 'numpy"):
        read_lock(lock)


@pytest.mark.parametrize(
    "lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.name
)
def test_locks_of_the_repository_are_read(lock: Path) -> None:
    assert read_lock(lock)
