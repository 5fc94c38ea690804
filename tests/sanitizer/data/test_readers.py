from pathlib import Path

import numpy as np
import pytest

from sanitizer.data.readers import open_source
from sanitizer.errors import DataUnreadable
from sanitizer.spec import DataSource

from .files import png, write_zip


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataUnreadable, match=r"no file or folder .*gone"):
        open_source(DataSource(path=tmp_path / "gone"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08\0", "gzip file, pack a zip"),
        (b"hello, world", "starts with the bytes 68 65"),
        (png(0), "a single image"),
    ],
)
def test_a_file_of_no_known_layout_is_described(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(content)
    with pytest.raises(DataUnreadable, match=said):
        open_source(DataSource(path=path))


def test_a_single_numpy_array_is_told_from_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(DataUnreadable, match=r"numpy\.savez"):
        open_source(DataSource(path=tmp_path / "d.npy"))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.parquet", {"cat/a.png": png(1)})
    assert open_source(DataSource(path=path)).layout == "zip"
