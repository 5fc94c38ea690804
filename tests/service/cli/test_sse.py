from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.cli.sse import EventParser, ServerSentEvent, parse

STREAM = (
    "\ufeff: a comment\r\n"
    "retry: 2500\n"
    "event: stage\rid: 7\rdata: one\rdata:two\r\r"
    "data: caf\u00e9 \u2028 still the same line\n\n"
    "id: 8\n\n"
    "data\n\n"
    "data:  two spaces\nid: a\0b\nunknown: x\n\n"
    "data: cut off"
).encode()

EVENTS = [
    ServerSentEvent("stage", "one\ntwo", "7"),
    ServerSentEvent("message", "caf\u00e9 \u2028 still the same line", "7"),
    ServerSentEvent("message", "", "8"),
    ServerSentEvent("message", " two spaces", "8"),
]


def test_a_stream_gives_its_events_as_the_standard_says() -> None:
    assert list(parse([STREAM])) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_do_not_depend_on_where_the_stream_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(places)]
    assert list(parse(pieces)) == EVENTS


def test_an_id_without_data_is_remembered_for_the_reconnect() -> None:
    parser = EventParser()
    assert list(parse([b"id: 12\n\n"], parser)) == []
    assert parser.last_id == "12"


def test_an_id_of_an_event_that_was_cut_off_is_not_remembered() -> None:
    parser = EventParser("3")
    assert list(parse([b"id: 4\ndata: x\n"], parser)) == []
    assert parser.last_id == "3"


def test_retry_is_read_in_seconds_and_nonsense_is_ignored() -> None:
    parser = EventParser()
    list(parse([b"retry: 1500\nretry: soon\n\n"], parser))
    assert parser.retry_seconds == 1.5
