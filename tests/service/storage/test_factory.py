"""The store a URL names."""

from pathlib import Path

import pytest

from service.storage.factory import UnknownStore, make_store


def test_relative_folder_is_made_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_store("file:var/store").ping()
    assert (tmp_path / "var/store").is_dir()


def test_url_with_three_slashes_is_an_absolute_folder(tmp_path: Path) -> None:
    make_store(f"file://{tmp_path}/store").ping()
    assert (tmp_path / "store").is_dir()


@pytest.mark.parametrize("url", ["ftp://somewhere", "file:", "store"])
def test_unknown_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(UnknownStore, match="file:FOLDER"):
        make_store(url)
