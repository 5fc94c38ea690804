"""What Celery does in a worker's life, beside its own."""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import structlog
from celery import Celery, bootsteps
from celery.worker.request import Request

from worker.periodic import Periodic

TOUCH_SECONDS = 2.0
LOOK_SECONDS = 1.0
ACKNOWLEDGE_SECONDS = 5.0
"""How long an acknowledgement may take before it counts as lost."""

log = structlog.get_logger(__name__)


def touch_while_alive(app: Celery, path: Path) -> None:
    """Makes workers touch a file while their main loop turns; see `worker.alive`.

    The loop stands still while Celery connects to the broker. A thread touches the file then: a
    worker whose broker is away is alive, and may be in the middle of jobs.
    """
    connected = threading.Event()

    def touch_unless_connected() -> None:
        if not connected.is_set():
            path.touch()

    class Alive(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
        requires = {"celery.worker.components:Timer"}  # noqa: RUF012  # celery's own way

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            self._timer: Any = None
            self._thread = Periodic("alive", touch_unless_connected, TOUCH_SECONDS)

        def start(self, parent: Any) -> None:
            path.touch()
            self._timer = parent.timer.call_repeatedly(TOUCH_SECONDS, path.touch)
            self._thread.start()

        def stop(self, _parent: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._thread.stop()
            path.unlink(missing_ok=True)

    class Connected(bootsteps.StartStopStep):  # type: ignore[misc]  # as above
        """Starts and stops with the connection to the broker."""

        requires = {"celery.worker.consumer.tasks:Tasks"}  # noqa: RUF012  # celery's own way

        def start(self, _parent: Any) -> None:
            connected.set()

        def stop(self, _parent: Any) -> None:
            connected.clear()

    app.steps["worker"].add(Alive)
    app.steps["consumer"].add(Connected)


def rest_unless(app: Celery, is_able: Callable[[], bool]) -> None:
    """Makes workers take no messages while they could do nothing with them.

    A worker that looks idle would be the first to take each, for all that others are free.
    """

    class Rest(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
        requires = {"celery.worker.consumer.tasks:Tasks"}  # noqa: RUF012  # celery's own way

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            self._timer: Any = None
            self._rests = False

        def start(self, parent: Any) -> None:
            self._timer = parent.timer.call_repeatedly(
                LOOK_SECONDS, self._look, (parent.task_consumer,)
            )

        def stop(self, _parent: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _look(self, consumer: Any) -> None:
            if not is_able():
                consumer.cancel()
                if not self._rests:
                    log.error("children that cannot be ended keep all slots: no more jobs")
                self._rests = True
            elif self._rests:
                consumer.consume()
                log.warning("a child that could not be ended has ended: jobs are taken again")
                self._rests = False

    app.steps["consumer"].add(Rest)


def connect_again_after_a_lost_acknowledgement(app: Celery) -> None:
    """Makes workers connect to the broker anew once they could not acknowledge a message.

    Celery only logs it. The message would count as one in work for good, and a worker that takes
    no more messages than it has slots would never take another: a cut of the network during a long
    job was enough.
    """
    waiting: deque[tuple[float, Any]] = deque()

    class WatchedRequest(Request):  # type: ignore[misc]  # celery ships no types
        def acknowledge(self) -> None:
            super().acknowledge()  # the main loop does it, a little later
            waiting.append((time.monotonic(), self.message))

    class ConnectAgain(bootsteps.StartStopStep):  # type: ignore[misc]  # as above
        requires = {"celery.worker.consumer.tasks:Tasks"}  # noqa: RUF012  # celery's own way

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            self._timer: Any = None

        def start(self, parent: Any) -> None:
            waiting.clear()
            self._timer = parent.timer.call_repeatedly(LOOK_SECONDS, self._look)

        def stop(self, _parent: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()

        def _look(self) -> None:
            while waiting and waiting[0][1].acknowledged:
                waiting.popleft()
            if waiting and time.monotonic() - waiting[0][0] > ACKNOWLEDGE_SECONDS:
                # The main loop takes it for what it is: the connection is of no more use.
                raise redis.ConnectionError("a message could not be acknowledged")

    app.Task.Request = WatchedRequest
    app.steps["consumer"].add(ConnectAgain)
