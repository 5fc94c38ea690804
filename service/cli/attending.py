"""What a running stack says: the lines of its logs that matter, and a calm line below."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.text import Text
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.cli.stack import Stack
from service.cli.terminal import say, stderr
from service.db.session import SessionFactory, transaction
from service.db.tables import Job

LOOK_SECONDS = 0.5
LOUD_LEVELS = frozenset({"warning", "error", "critical"})
_LOUD_TEXT = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
_NOT_SHOWN = frozenset({"event", "level", "timestamp", "logger", "exception", "stack"})


class LogTail:
    """The lines that are added to a log from now on."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._place = path.stat().st_size
        self._rest = b""

    def new_lines(self) -> Iterator[str]:
        """Whole lines that came since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        self._place += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")


def attend(stack: Stack) -> None:
    """Shows what happens until it is interrupted.

    Raises:
        StackError: A part ended by itself.
    """
    tails = [LogTail(part.name, part.log) for part in stack.parts]
    console = stderr()
    with console.status("") as status:
        while True:
            stack.check()
            for each in tails:
                for line in each.new_lines():
                    message, style = important(line)
                    if message:
                        say(f"{time.strftime('%H:%M:%S')} {each.name}: {message}", style=style)
            counts = count_jobs(stack.settings.sessions)
            status.update(Text(f"{stack.url}  {counts}  Ctrl-C stops everything", style="dim"))
            time.sleep(LOOK_SECONDS)


def important(line: str) -> tuple[str, str | None]:
    """What a person should see of a line of a log, and its style; empty: nothing.

    Warnings and errors, and what is said of jobs.
    """
    try:
        entry = json.loads(line)
    except ValueError:
        return (line, "yellow") if _LOUD_TEXT.search(line) else ("", None)
    if not isinstance(entry, dict):
        return "", None
    loud = str(entry.get("level", "")).lower() in LOUD_LEVELS
    if not loud and "job_id" not in entry:
        return "", None
    return _sentence(entry), "yellow" if loud else None


def _sentence(entry: dict[str, Any]) -> str:
    details = "  ".join(f"{k}={v}" for k, v in entry.items() if k not in _NOT_SHOWN)
    cause = str(entry.get("exception") or "").strip().splitlines()
    return "  ".join(part for part in [str(entry.get("event", "")), details, *cause[-1:]] if part)


def count_jobs(sessions: SessionFactory) -> str:
    """How many jobs there are, by status."""
    try:
        with transaction(sessions) as session:
            rows = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
    except SQLAlchemyError:
        return "database busy"
    return ", ".join(f"{count} {status}" for status, count in sorted(rows)) or "no jobs yet"
