import json
from pathlib import Path

import pytest

from service.cli.attending import LogTail, important


def entry(**fields: object) -> str:
    return json.dumps({"level": "info", "timestamp": "t", "event": "something", **fields})


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (entry(), ""),
        (entry(level="debug", job_id="job_1"), "something  job_id=job_1"),
        (entry(level="warning", reason="x"), "something  reason=x"),
        (entry(level="error", exception="Traceback\n  ...\nKeyError: 1"), "something  KeyError: 1"),
        ("[2025] WARNING/MainProcess] lost", "[2025] WARNING/MainProcess] lost"),
        ("ready to accept connections", ""),
        ("[1, 2]", ""),
        ("", ""),
    ],
)
def test_warnings_and_what_is_said_of_jobs_are_shown(line: str, shown: str) -> None:
    assert important(line)[0] == shown


def test_only_whole_new_lines_of_a_log_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old\n")
    tail = LogTail("x", path)
    with path.open("a") as file:
        file.write("one\ntw")
    assert list(tail.new_lines()) == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert list(tail.new_lines()) == ["two"]
    assert list(tail.new_lines()) == []
