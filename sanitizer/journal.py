"""What a run tells while it runs, and what it keeps of it for the report."""

from sanitizer.events import Event, Stage, StageEvent, WarningEvent
from sanitizer.progress import Emit
from sanitizer.report.model import WarningRecord


class Journal:
    """Sends events, and remembers the warnings.

    Args:
        emit: Where events go.
    """

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.warnings: list[WarningRecord] = []

    def begin(self, stage: Stage, message: str) -> None:
        """A stage begins."""
        self.emit(StageEvent(stage=stage, message=message))

    def warn(self, code: str, message: str) -> None:
        """Something a person should know that does not stop the run."""
        self.warnings.append(WarningRecord(code=code, message=message))
        self.emit(WarningEvent(code=code, message=message))


def keep_quiet(event: Event) -> None:
    """What happens to the events of those that are not the leader."""
