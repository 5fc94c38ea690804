"""What Celery does at a worker's start and end, beside its own."""

from pathlib import Path
from typing import Any

from celery import bootsteps

TOUCH_SECONDS = 5.0


def touch_while_alive(path: Path) -> type[bootsteps.StartStopStep]:
    """Makes a Celery worker touch a file while its main loop turns; see `worker.alive`."""

    class Alive(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
        requires = {"celery.worker.components:Timer"}  # noqa: RUF012  # celery's own way

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            self._timer: Any = None

        def start(self, parent: Any) -> None:
            path.touch()
            self._timer = parent.timer.call_repeatedly(TOUCH_SECONDS, path.touch)

        def stop(self, _parent: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
            path.unlink(missing_ok=True)

    return Alive
