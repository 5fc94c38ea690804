"""How the processes of a run leave word, and whose word counts."""

from pathlib import Path

import pytest

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent
from sanitizer.parallel.meeting import Meeting


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    meeting = Meeting(tmp_path / "work" / "processes")
    meeting.prepare()
    return meeting


def error(code: str) -> ErrorEvent:
    return ErrorEvent(code=code, fault=Fault.MACHINE, message=f"It is {code}.", data={"a": 1})


def test_one_that_knows_why_is_heard_before_those_who_miss_somebody(meeting: Meeting) -> None:
    meeting.leave_error(0, error("process_lost"))
    meeting.leave_error(10, error("internal_error"))
    meeting.leave_error(9, error("out_of_memory"))
    assert meeting.error is not None
    assert meeting.error.code == "out_of_memory"
    assert meeting.error.data == {"a": 1}


def test_where_nobody_knows_why_it_is_told_that_one_is_missed(meeting: Meeting) -> None:
    meeting.leave_error(1, error("process_lost"))
    assert meeting.error is not None
    assert meeting.error.code == "process_lost"


def test_where_nobody_left_word_there_is_none(meeting: Meeting) -> None:
    assert meeting.error is None
    assert meeting.code is None


def test_code_of_the_leader_is_kept(meeting: Meeting) -> None:
    meeting.leave_code(1)
    assert meeting.code == 1


def test_what_an_earlier_run_has_left_is_gone(meeting: Meeting) -> None:
    meeting.leave_code(0)
    meeting.leave_error(0, error("internal_error"))
    meeting.store.touch()
    meeting.prepare()
    assert list(meeting.folder.iterdir()) == []
