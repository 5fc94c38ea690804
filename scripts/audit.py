"""Looks the locked dependencies up among known vulnerabilities: `python -m scripts.audit LOCK...`.

pip-audit does the looking up. By itself it calls a dependency that the advisory service does not
know "skipped" and ends well, so where the service is cut off, or a mirror stands in for it that has
no advisories, everything looks clean. Here that is an error: first a release is looked up that is
known to be vulnerable, and no dependency may be skipped. And where a lock has a version for each of
several Pythons, pip-audit sees that of the Python it runs on; here all are looked up.

Exit codes: 0 nothing known, 1 something known, 2 nothing could be said.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from packaging.version import Version

from scripts.locks import LockError, read_lock

IGNORED = Path(__file__).with_name("audit_ignored.toml")
KNOWN_VULNERABLE = "flask==0.5"
"""Of 2010, with two advisories of 2018 and 2019 that nobody will withdraw."""

CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 2


class NotAudited(Exception):
    """Nothing can be said about the dependencies."""


@dataclass(frozen=True)
class Finding:
    """One advisory that a locked dependency falls under."""

    package: str
    version: str
    id: str
    aliases: frozenset[str]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        fix = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fix yet"
        names = ", ".join([self.id, *sorted(self.aliases)])
        return f"{self.package} {self.version}: {names}; {fix}"


@dataclass(frozen=True)
class Ignored:
    """An advisory that is let pass until a day."""

    id: str
    reason: str
    until: date


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.audit", description=__doc__)
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK")
    parser.add_argument(
        "--service", choices=("pypi", "osv"), default="pypi", help="who is asked for advisories"
    )
    options = parser.parse_args(arguments)
    try:
        ignored = read_ignored(IGNORED)
        check_service(options.service)
        found = look_up(options.locks, options.service)
    except (NotAudited, LockError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # to a person at a terminal
        return NOT_AUDITED
    complaints = judge(found, ignored, today=datetime.now(UTC).date())
    for complaint in complaints:
        print(complaint, file=sys.stderr)  # noqa: T201
    if complaints:
        return VULNERABLE
    known = f"; {len(ignored)} let pass, see {IGNORED.name}" if ignored else ""
    print(f"{', '.join(map(str, options.locks))}: no known vulnerability{known}")  # noqa: T201
    return CLEAN


def read_ignored(path: Path) -> list[Ignored]:
    """The advisories that are let pass.

    Raises:
        NotAudited: An entry lacks its id, its reason or its day.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("ignored", [])
    read = []
    for entry in entries:
        match entry:
            case {"id": str(id), "reason": str(reason), "until": date() as until} if reason.strip():
                read.append(Ignored(id, reason, until))
            case _:
                raise NotAudited(f"{path}: expected id, reason and until (a day), got {entry}.")
    return read


def judge(found: Sequence[Finding], ignored: Sequence[Ignored], *, today: date) -> list[str]:
    """What is wrong, a line each: findings that nobody let pass, and exceptions that are over."""
    passes = {each.id for each in ignored if each.until >= today}
    complaints = [
        str(finding) for finding in found if not passes & ({finding.id} | finding.aliases)
    ]
    names = {name for finding in found for name in (finding.id, *finding.aliases)}
    for each in ignored:
        if each.id not in names:
            complaints.append(f"{each.id} is let pass but not found any more: take it off the list")
        elif each.until < today:
            complaints.append(f"{each.id} was let pass until {each.until}: {each.reason}")
    return complaints


def check_service(service: str) -> None:
    """Makes sure that the advisory service knows advisories.

    Raises:
        NotAudited: It does not answer, or calls a vulnerable release clean.
    """
    if not read_findings(_ask([KNOWN_VULNERABLE], service)):
        raise NotAudited(
            f"The advisory service {service} answers, but knows nothing of {KNOWN_VULNERABLE}, "
            "which is vulnerable: a mirror without advisories, most likely. Nothing was audited. "
            "Run it where the service itself can be reached, or choose the other (--service)."
        )


def look_up(locks: Sequence[Path], service: str) -> list[Finding]:
    """The advisories that the dependencies in some locks fall under.

    Raises:
        LockError: A lock cannot be read.
        NotAudited: The service does not answer, or leaves a dependency out.
    """
    found: set[Finding] = set()
    for pins in rounds(locks):
        answer = _ask(pins, service)
        refuse_gaps(answer, service)
        found.update(read_findings(answer))
    return sorted(found, key=str)


def rounds(locks: Sequence[Path]) -> list[list[str]]:
    """All that is locked, as lists of `name==version` that have each name once."""
    versions: dict[str, set[Version]] = {}
    for lock in locks:
        for name, locked in read_lock(lock).items():
            versions.setdefault(name, set()).update(locked)
    count = max(map(len, versions.values()), default=0)
    return [
        [
            f"{name}=={sorted(locked)[number]}"
            for name, locked in sorted(versions.items())
            if number < len(locked)
        ]
        for number in range(count)
    ]


def refuse_gaps(answer: Mapping[str, Any], service: str) -> None:
    """Makes sure that an answer of pip-audit speaks of every dependency.

    Raises:
        NotAudited: It leaves some out; names them.
    """
    skipped = {each["name"] for each in answer["dependencies"] if "skip_reason" in each}
    if skipped:
        raise NotAudited(
            f"The advisory service {service} does not know {len(skipped)} of the dependencies: "
            f"{', '.join(sorted(skipped))}. Nothing was said about them."
        )


def read_findings(answer: Mapping[str, Any]) -> list[Finding]:
    """The advisories in an answer of pip-audit, each once."""
    found = {
        Finding(
            each["name"],
            each["version"],
            advisory["id"],
            frozenset(advisory["aliases"]),
            tuple(advisory["fix_versions"]),
        )
        for each in answer["dependencies"]
        for advisory in each.get("vulns", ())
    }
    return sorted(found, key=str)


def _ask(pins: Sequence[str], service: str) -> dict[str, Any]:
    """What pip-audit says of some releases; it needs no pip where every version is pinned.

    Raises:
        NotAudited: It says nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("".join(f"{pin}\n" for pin in pins))
        command = [
            *(sys.executable, "-m", "pip_audit", "--progress-spinner", "off"),
            *("--format", "json", "--aliases", "on", "--vulnerability-service", service),
            *("--disable-pip", "--no-deps", "--requirement", str(requirements)),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(ran.stdout)
    except ValueError as error:
        lines = ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"]
        raise NotAudited(
            f"pip-audit could not ask the advisory service {service}, so nothing was audited: "
            f"{lines[-1]}"
        ) from error
    return answer


if __name__ == "__main__":
    sys.exit(main())
