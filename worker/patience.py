"""How long a store that does not answer is waited for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from service.storage import StorageError

PAUSE_SECONDS = 2.0
"""Between two tries."""
CHECK_SECONDS = 0.2

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """Tries again what a store did not answer to.

    Attributes:
        seconds: From the first try to the last one.
        check: Called while it waits; raises if the attempt shall not go on.
    """

    seconds: float
    check: Callable[[], object]

    def of(self, work: Callable[[], T]) -> T:
        """What `work` gives, which is called anew while the store does not answer.

        Raises:
            StorageError: The time is over; or, at once, another one than that there is no answer.
        """
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                return work()
            except StorageError as error:
                # The kinds of it tell of what waiting does not change.
                if type(error) is not StorageError or time.monotonic() >= deadline:
                    raise
                log.warning("the store is waited for", reason=str(error))
            self._pause(min(deadline, time.monotonic() + PAUSE_SECONDS))

    def _pause(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(CHECK_SECONDS, left))
        self.check()
