"""The folder where the processes of one run find each other and leave how they ended. Torch-free.

Only the launcher speaks for a run that failed: of several processes that fail together, one knows
why, and the others only that somebody is gone.
"""

import shutil
from pathlib import Path

from sanitizer.errors import ProcessLost
from sanitizer.events import ErrorEvent


class Meeting:
    """A folder that belongs to the processes of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        """Where they tell each other their addresses."""

    def prepare(self) -> None:
        """Makes the folder, without what an earlier run may have left there."""
        self.remove()
        self.folder.mkdir(parents=True)

    def remove(self) -> None:
        """Takes the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def leave_code(self, code: int) -> None:
        """The leader has finished the run, and the command shall end with this code."""
        self._write("code", str(code))

    def leave_error(self, rank: int, error: ErrorEvent) -> None:
        """A process has failed."""
        self._write(f"error-{rank:03}", error.model_dump_json())

    @property
    def code(self) -> int | None:
        """What the leader has left; none if it did not finish."""
        path = self.folder / "code"
        return int(path.read_text()) if path.is_file() else None

    @property
    def error(self) -> ErrorEvent | None:
        """Why the run failed, from the lowest rank that knows; none if nobody said a word."""
        said = [
            ErrorEvent.model_validate_json(path.read_bytes())
            for path in sorted(self.folder.glob("error-*"))
        ]
        told = [error for error in said if error.code != ProcessLost.code]
        return next(iter([*told, *said]), None)

    def _write(self, name: str, content: str) -> None:
        # Whole or not at all: its process may be ended while it writes.
        part = self.folder / f".{name}"
        part.write_text(content, encoding="utf-8")
        part.replace(self.folder / name)
