"""Parts of a scrape: each is read in a thread of its own, and waited for only so long."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

import structlog

Value = TypeVar("Value")

log = structlog.get_logger(__name__)


class Reading(Generic[Value]):
    """One part of the figures.

    A database or a broker that hangs keeps one thread, however often it is asked meanwhile, and
    holds nobody up for longer than the deadline.

    Args:
        name: What the log calls it.
        keep_seconds: A value this young is given again.
    """

    def __init__(self, name: str, read: Callable[[], Value], *, keep_seconds: float = 0.0) -> None:
        self._name = name
        self._read = read
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        self._latest: Future[Value | None] | None = None
        self._good_until = 0.0

    def begin(self) -> "Future[Value | None]":
        """Starts to read, unless that is under way already or the last value is young enough."""
        with self._lock:
            latest = self._latest
            if latest is None or (latest.done() and time.monotonic() >= self._good_until):
                latest = self._latest = Future()
                threading.Thread(
                    target=self._fill, args=(latest,), name=f"read {self._name}", daemon=True
                ).start()
            return latest

    def wait(self, begun: "Future[Value | None]", deadline: float) -> Value | None:
        """What was read; None: it could not be, or not before the deadline (`time.monotonic`)."""
        try:
            return begun.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            log.warning("figures are left out, no answer in time", part=self._name)
            return None

    def _fill(self, future: "Future[Value | None]") -> None:
        value: Value | None = None
        try:
            value = self._read()
        except Exception as error:
            # Whatever is wrong with one part, the figures of the others are worth having.
            log.warning("figures are left out", part=self._name, reason=str(error))
        else:
            self._good_until = time.monotonic() + self._keep_seconds
        future.set_result(value)
