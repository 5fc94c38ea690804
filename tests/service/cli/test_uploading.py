import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from service.cli.failures import UnsupportedInput, WrongUsage
from service.cli.uploading import CountedFile, images_in, readable_file, sha256_of, zipped


def make_folder(root: Path) -> Path:
    for name, content in [("1/b.png", b"bb"), ("0/a.png", b"a"), ("0/deep/c.png", b"ccc")]:
        path = root / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "digits" / "README").write_text("beside the classes")
    (root / "digits" / "0" / ".DS_Store").write_text("hidden")
    (root / "digits" / ".git").mkdir()
    (root / "digits" / ".git" / "config").write_text("hidden")
    return root / "digits"


def test_a_folder_of_class_folders_becomes_a_stored_archive(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    counted: list[None] = []
    with zipped(folder, lambda: counted.append(None)) as path:
        assert path.name == "digits.zip"
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["0/a.png", "0/deep/c.png", "1/b.png"]
            assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.read("0/deep/c.png") == b"ccc"
    assert len(counted) == 3
    assert not path.exists()


def test_the_same_folder_gives_the_same_archive(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with zipped(folder) as path:
        first = sha256_of(path)
    (folder / "0" / "a.png").touch()
    with zipped(folder) as path:
        assert sha256_of(path) == first


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(UnsupportedInput, match="one folder a class"):
        images_in(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_an_archive_cannot_hold_is_refused_and_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "0" / os.fsdecode(b"\xe9.png")).write_bytes(b"e")
    with (
        pytest.raises(UnsupportedInput, match=r"digits/0/\N{REPLACEMENT CHARACTER}\.png: .*UTF-8"),
        zipped(folder),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_the_name_of_the_folder_itself_may_be_any(tmp_path: Path) -> None:
    folder = make_folder(tmp_path).rename(tmp_path / os.fsdecode(b"\xe9"))
    with zipped(folder) as path:
        assert path.name == "\N{REPLACEMENT CHARACTER}.zip"


def test_a_checksum_is_that_of_the_content_and_counts_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10_000)
    counted: list[int] = []
    assert sha256_of(path, counted.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(counted) == path.stat().st_size


def test_going_back_to_the_start_takes_back_what_was_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    counted: list[int] = []
    with path.open("rb") as opened:
        file = CountedFile(opened, counted.append)
        file.read(3)
        file.seek(0)
        file.read()
    assert counted == [3, -3, 5]


def test_what_is_no_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="is a folder"):
        readable_file(tmp_path)
    with pytest.raises(WrongUsage, match="There is no file"):
        readable_file(tmp_path / "missing")
