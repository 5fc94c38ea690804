"""Work that a thread does again and again until it is told to stop."""

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class Periodic:
    """Calls a function every so many seconds; what it raises is logged, and it is called again."""

    def __init__(self, name: str, work: Callable[[], object], seconds: float) -> None:
        self._name = name
        self._work = work
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins, with a call at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a call under way is waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._work()
            except Exception:
                log.exception("failed, tried again later", work=self._name)
            if self._stop.wait(self._seconds):
                return
