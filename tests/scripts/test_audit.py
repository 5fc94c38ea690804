import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from scripts.audit import (
    IGNORED,
    Finding,
    Ignored,
    NotAudited,
    judge,
    read_findings,
    read_ignored,
    refuse_gaps,
    rounds,
)

TODAY = date(2026, 11, 23)
FINDING = Finding("pillow", "9.0.0", "PYSEC-2023-1", frozenset({"CVE-2023-1"}), ("9.0.1",))


def _answer(*dependencies: dict[str, Any]) -> dict[str, Any]:
    """As `pip-audit --format json` writes it."""
    return {"dependencies": list(dependencies), "fixes": []}


def test_finding_that_nobody_lets_pass_is_told_with_its_fix() -> None:
    (complaint,) = judge([FINDING], [], today=TODAY)

    assert complaint == "pillow 9.0.0: PYSEC-2023-1, CVE-2023-1; fixed in 9.0.1"


@pytest.mark.parametrize("name", ["PYSEC-2023-1", "CVE-2023-1"])
def test_finding_that_is_let_pass_by_any_of_its_names_is_not_told(name: str) -> None:
    ignored = Ignored(name, "Not reachable.", until=TODAY)

    assert judge([FINDING], [ignored], today=TODAY) == []


def test_exception_that_is_over_counts_no_more() -> None:
    ignored = Ignored("CVE-2023-1", "Not reachable.", until=date(2026, 11, 22))

    told, over = judge([FINDING], [ignored], today=TODAY)

    assert told.startswith("pillow 9.0.0")
    assert "until 2026-11-22" in over


def test_exception_for_what_is_not_found_any_more_has_to_go() -> None:
    ignored = Ignored("CVE-2023-1", "Not reachable.", until=TODAY)

    (complaint,) = judge([], [ignored], today=TODAY)

    assert "take it off the list" in complaint


def test_advisory_of_a_dependency_in_two_locks_is_one_finding() -> None:
    dependency = {
        "name": "pillow",
        "version": "9.0.0",
        "vulns": [{"id": "PYSEC-2023-1", "aliases": ["CVE-2023-1"], "fix_versions": ["9.0.1"]}],
    }

    assert read_findings(_answer(dependency, dependency)) == [FINDING]


def test_dependency_without_an_advisory_is_no_finding() -> None:
    assert read_findings(_answer({"name": "pillow", "version": "13.0.0", "vulns": []})) == []


def test_dependency_that_was_skipped_is_no_clean_one() -> None:
    skipped = {"name": "pillow", "skip_reason": "Dependency not found"}

    with pytest.raises(NotAudited, match="pillow"):
        refuse_gaps(_answer(skipped), "pypi")


def test_all_versions_of_all_locks_are_looked_up_each_name_once_a_round(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    end = f" --hash=sha256:{'0' * 64}\n"
    first.write_text(
        f"numpy==2.4.6 ; python_version < '3.12'{end}numpy==2.5.5 ; python_version >= '3.12'{end}"
    )
    second.write_text(f"numpy==2.5.5{end}pillow==13.0.0{end}")

    assert rounds([first, second]) == [["numpy==2.4.6", "pillow==13.0.0"], ["numpy==2.5.5"]]


@pytest.mark.parametrize(
    "entry",
    [
        'id = "CVE-2023-1"\nuntil = 2027-01-01',
        'id = "CVE-2023-1"\nreason = " "\nuntil = 2027-01-01',
        'id = "CVE-2023-1"\nreason = "Not reachable."\nuntil = "soon"',
    ],
    ids=["no reason", "empty reason", "no day"],
)
def test_exception_without_reason_and_day_is_refused(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "ignored.toml"
    path.write_text(f"[[ignored]]\n{entry}\n")

    with pytest.raises(NotAudited, match="expected id, reason and until"):
        read_ignored(path)


def test_exceptions_of_the_repository_can_be_read() -> None:
    read_ignored(IGNORED)


def test_audit_that_cannot_ask_says_so_and_fails(tmp_path: Path) -> None:
    """A proxy where nobody listens: no network, however much of one this machine has."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"flask==0.5 --hash=sha256:{'0' * 64}\n")
    environment = {"HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}

    ran = subprocess.run(
        [sys.executable, "-m", "scripts.audit", str(lock)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 2
    assert "nothing was audited" in ran.stderr
    assert "no known vulnerability" not in ran.stdout
