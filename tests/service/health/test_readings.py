import threading
import time
from collections.abc import Iterator

import pytest

from service.health.readings import Reading


class Source:
    """Gives 1, 2, 3, ... and can be made to hang or to fail."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_broken = False
        self.goes_on = threading.Event()
        self.goes_on.set()

    def read(self) -> int:
        self.asked += 1
        self.goes_on.wait(10)
        if self.is_broken:
            raise RuntimeError("broken")
        return self.asked


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.goes_on.set()


def _value(reading: Reading[int], seconds: float = 5.0) -> int | None:
    return reading.wait(reading.begin(), time.monotonic() + seconds)


def test_each_time_it_is_read_anew(source: Source) -> None:
    reading = Reading("part", source.read)
    assert [_value(reading), _value(reading)] == [1, 2]


def test_value_that_is_young_enough_is_given_again(source: Source) -> None:
    reading = Reading("part", source.read, keep_seconds=60)
    assert [_value(reading), _value(reading)] == [1, 1]


def test_part_that_fails_gives_nothing_and_is_read_again(source: Source) -> None:
    reading = Reading("part", source.read, keep_seconds=60)
    source.is_broken = True
    assert _value(reading) is None
    source.is_broken = False
    assert _value(reading) == 2


def test_part_that_hangs_is_waited_for_until_the_deadline_and_asked_once(source: Source) -> None:
    reading = Reading("part", source.read)
    source.goes_on.clear()
    began = time.monotonic()
    assert [_value(reading, 0.1) for _ in range(3)] == [None, None, None]
    assert time.monotonic() - began < 10
    assert source.asked == 1
    source.goes_on.set()
    assert _value(reading) == 1


def test_scrapes_at_once_share_what_is_under_way(source: Source) -> None:
    reading = Reading("part", source.read)
    source.goes_on.clear()
    first, second = reading.begin(), reading.begin()
    source.goes_on.set()
    deadline = time.monotonic() + 30
    assert [reading.wait(first, deadline), reading.wait(second, deadline)] == [1, 1]
