"""Server-sent events, read as section 9.2.6 of the HTML standard says."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LINE_END = re.compile("\r\n|\n|\r")


@dataclass(frozen=True)
class ServerSentEvent:
    """One event.

    Attributes:
        type: `message` unless the stream says otherwise.
        data: The data lines, joined by newlines.
        last_id: What to send as `Last-Event-ID` to go on after this event; empty: nothing.
    """

    type: str
    data: str
    last_id: str


class EventParser:
    """Turns the pieces of one stream into events, however they are cut.

    A stream that goes on after a break needs a parser of its own, with the `last_id` of this one.

    Attributes:
        last_id: The last event id seen, kept over events that have none.
        retry_seconds: How long the server asks to wait before a reconnect; none: it did not say.
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_seconds: float | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._at_start = True
        self._type = ""
        self._data: list[str] = []
        self._id = last_id

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """The events that this piece completes."""
        text = self._decoder.decode(piece)
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        self._rest += text
        for line in self._whole_lines():
            event = self._line(line)
            if event is not None:
                yield event

    def _whole_lines(self) -> Iterator[str]:
        start = 0
        for end in _LINE_END.finditer(self._rest):
            if end.group() == "\r" and end.end() == len(self._rest):
                break  # a line feed that belongs to it may come with the next piece
            yield self._rest[start : end.start()]
            start = end.end()
        self._rest = self._rest[start:]

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_seconds = int(value) / 1000
        return None  # comments (no name) and unknown fields say nothing

    def _dispatch(self) -> ServerSentEvent | None:
        self.last_id = self._id
        kind, data = self._type or "message", self._data
        self._type, self._data = "", []
        return ServerSentEvent(kind, "\n".join(data), self.last_id) if data else None


def parse(pieces: Iterable[bytes], parser: EventParser | None = None) -> Iterator[ServerSentEvent]:
    """The events of a whole stream; one that the end of the stream cuts off is dropped."""
    parser = parser or EventParser()
    for piece in pieces:
        yield from parser.feed(piece)
