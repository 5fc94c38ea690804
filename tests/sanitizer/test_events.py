import os
from pathlib import Path

from sanitizer.data.readers import open_source
from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent, WarningEvent, parse, to_line
from sanitizer.spec import DataSource
from tests.sanitizer.data.files import png

LATIN = b"caf\xe9"
"""A name as old systems write it, which is no UTF-8."""


def test_a_file_whose_name_is_no_utf8_is_told_of(tmp_path: Path) -> None:
    for folder in (b"0", b"1"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + folder)
        (tmp_path / os.fsdecode(folder) / "image.png").write_bytes(png(seed=0))
    (tmp_path / "0" / os.fsdecode(LATIN + b".txt")).write_bytes(b"notes")
    (warning,) = open_source(DataSource(path=tmp_path)).warnings
    event = parse(to_line(WarningEvent(code=warning.code, message=warning.message)))
    assert isinstance(event, WarningEvent)
    assert event.message.startswith("1 file that is no image in a class folder was left out")
    assert "0/caf\N{REPLACEMENT CHARACTER}.txt" in event.message


def test_an_error_about_such_a_file_reaches_the_supervisor_with_all_its_data() -> None:
    name = os.fsdecode(LATIN)
    error = ErrorEvent(
        code="corrupt_image",
        fault=Fault.INPUT,
        message=f"The image {name} is damaged.",
        data={"image": name, "others": [{"image": name, "size": 3}]},
    )
    told = "caf\N{REPLACEMENT CHARACTER}"
    event = parse(to_line(error))
    assert isinstance(event, ErrorEvent)
    assert event.message == f"The image {told} is damaged."
    assert event.data == {"image": told, "others": [{"image": told, "size": 3}]}
