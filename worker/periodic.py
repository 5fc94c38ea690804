"""Work that a thread does again and again until it is told to stop."""

import contextvars
import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class Periodic:
    """Calls a function every so many seconds; what it raises is logged, and it is called again.

    Its log lines have the fields of whoever made it: job, attempt and so on.

    Args:
        first_after: Seconds before the first call.
    """

    def __init__(
        self, name: str, work: Callable[[], object], seconds: float, *, first_after: float = 0
    ) -> None:
        self._name = name
        self._work = work
        self._seconds = seconds
        self._first_after = first_after
        self._stop = threading.Event()
        context = contextvars.copy_context()  # threads begin with an empty one
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=name, daemon=True
        )

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a call under way is waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait = self._first_after
        while not self._stop.wait(wait):
            wait = self._seconds
            try:
                self._work()
            except Exception:
                log.exception("failed, tried again later", work=self._name)
