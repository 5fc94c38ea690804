"""A wire that breaks: what a client must live with between itself and the server."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class BreakingWire:
    """Passes bytes on to a server and cuts the first connections after so many bytes of the answer.

    Attributes:
        url: Where it listens.
        connections: How many clients have come.
    """

    def __init__(self, target: str, cut_after: Sequence[int]) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 80)
        self._cut_after = list(cut_after)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._open: list[socket.socket] = []

    def start(self) -> None:
        """Listens, in a thread."""
        self._threads[0].start()

    def stop_now(self) -> None:
        """Listens no longer, and cuts what is open."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Listens no longer, and waits until all connections are done."""
        self.stop_now()
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                number, self.connections = self.connections, self.connections + 1
                limit = self._cut_after[number] if number < len(self._cut_after) else None
                thread = threading.Thread(target=self._serve, args=(client, limit))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket, limit: int | None) -> None:
        with client, socket.create_connection(self._target) as server:
            self._open += [client, server]
            asking = threading.Thread(target=_pass_on, args=(client, server, None))
            asking.start()
            _pass_on(server, client, limit)
            asking.join(20)


def _pass_on(source: socket.socket, target: socket.socket, left: int | None) -> None:
    with suppress(OSError):
        while left is None or left > 0:
            data = source.recv(65536 if left is None else min(65536, left))
            if not data:
                break
            target.sendall(data)
            left = None if left is None else left - len(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def breaking(target: str, *cut_after: int) -> Iterator[BreakingWire]:
    """A wire to `target` whose n-th connection is cut after `cut_after[n]` bytes of answer."""
    wire = BreakingWire(target, cut_after)
    wire.start()
    try:
        yield wire
    finally:
        wire.stop()
