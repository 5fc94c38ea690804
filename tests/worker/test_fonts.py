"""Matplotlib's list of fonts is made once, by a real Python, and copied to each run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker.fonts import FOLDER, FontList


@pytest.fixture(scope="module")
def fonts() -> FontList:
    fonts = FontList()
    thread = fonts.begin()
    assert thread is not None
    thread.join(60)
    return fonts


def _list_in(folder: Path) -> Path:
    (path,) = folder.glob("fontlist-*.json")
    return path


def test_matplotlib_takes_the_list_as_its_own(fonts: FontList, tmp_path: Path) -> None:
    folder = fonts.place(tmp_path)
    assert folder is not None
    # A list that matplotlib made itself would not name this font.
    content = json.loads(_list_in(folder).read_text())
    content["ttflist"][0]["name"] = "Known by the List Alone"
    _list_in(folder).write_text(json.dumps(content))
    ask = "from matplotlib.font_manager import fontManager as f; print({e.name for e in f.ttflist})"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", ask],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MPLCONFIGDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Known by the List Alone" in ran.stdout
    assert ran.stderr == ""


def test_what_one_run_does_to_its_list_no_other_sees(fonts: FontList, tmp_path: Path) -> None:
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        home.mkdir()
    spoilt = fonts.place(homes[0])
    assert spoilt is not None
    _list_in(spoilt).write_text("{}")
    whole = fonts.place(homes[1])
    assert whole is not None
    assert json.loads(_list_in(whole).read_text())["ttflist"]


@pytest.mark.parametrize("kind", ["link", "file", "folder with a link"])
def test_what_an_earlier_attempt_left_there_is_not_followed(
    fonts: FontList, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    first = fonts.place(tmp_path)
    assert first is not None
    name = _list_in(first).name
    match kind:
        case "link":
            _list_in(first).unlink()
            first.rmdir()
            first.symlink_to(outside)
        case "file":
            _list_in(first).unlink()
            first.rmdir()
            first.write_text("in the way")
        case _:
            _list_in(first).unlink()
            (first / name).symlink_to(outside / "kept")
    again = fonts.place(tmp_path)
    assert again == tmp_path / FOLDER
    assert json.loads((again / name).read_text())["ttflist"]
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def test_without_a_list_a_run_gets_none(tmp_path: Path) -> None:
    assert FontList().place(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_list_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    fonts = FontList()
    with capture_logs() as logs:
        thread = fonts.begin()
        assert thread is not None
        thread.join(60)
    assert [entry["event"] for entry in logs] == ["the list of fonts could not be made"]
