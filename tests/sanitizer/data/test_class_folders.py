import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sanitizer.data.image_set import decode
from sanitizer.data.readers import open_source
from sanitizer.data.source import ImageSource, Limits
from sanitizer.errors import ClassMismatch, CorruptImage, DataUnreadable, UnsafeArchive
from sanitizer.spec import DataSource

from .files import encode, pixels, png, read_all, write_tree, write_zip

Writer = Callable[[Path, Mapping[str, bytes]], Path]


def as_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    return write_tree(root / "data", files)


def as_zip(root: Path, files: Mapping[str, bytes]) -> Path:
    return write_zip(root / "data.zip", files)


@pytest.fixture(params=[as_folder, as_zip], ids=["folder", "zip"])
def write(request: pytest.FixtureRequest) -> Writer:
    writer: Writer = request.param
    return writer


def opened(path: Path, class_names: tuple[str, ...] | None = None) -> ImageSource:
    return open_source(DataSource(path=path, class_names=class_names))


def test_class_folders_become_labels_and_names(write: Writer, tmp_path: Path) -> None:
    source = opened(
        write(tmp_path, {"dog/b.png": png(1), "cat/z.png": png(2), "cat/a.png": png(3)})
    )
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 1]
    assert list(source.names) == ["cat/a.png", "cat/z.png", "dog/b.png"]
    assert source.labels.dtype == np.int64
    assert source.warnings == ()


def test_reading_gives_the_bytes_of_the_files_asked_for(write: Writer, tmp_path: Path) -> None:
    source = opened(write(tmp_path, {"a/1.png": png(1), "a/2.png": png(2), "b/3.png": png(3)}))
    assert read_all(source, [2, 0, 2]) == {0: png(3), 1: png(1), 2: png(3)}


def test_folders_called_by_numbers_are_classes_by_value(write: Writer, tmp_path: Path) -> None:
    source = opened(write(tmp_path, {"10/a.png": png(1), "2/a.png": png(2), "0/a.png": png(3)}))
    assert source.labels.tolist() == [0, 2, 10]
    assert not source.names_are_complete


def test_class_names_of_the_request_set_the_order(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, {"cat/a.png": png(1), "dog/a.png": png(2)})
    source = opened(path, ("dog", "cat"))
    assert source.class_names == ("dog", "cat")
    assert [*zip(source.names, source.labels.tolist(), strict=True)] == [
        ("dog/a.png", 0),
        ("cat/a.png", 1),
    ]


@pytest.mark.parametrize("names", [("cat", "bird"), ("cat",), ("cat", "dog", "bird")])
def test_class_names_that_differ_from_the_folders_are_refused_with_both_sides(
    write: Writer, tmp_path: Path, names: tuple[str, ...]
) -> None:
    path = write(tmp_path, {"cat/a.png": png(1), "dog/a.png": png(2)})
    with pytest.raises(ClassMismatch) as caught:
        opened(path, names)
    assert caught.value.data == {"data_classes": ["cat", "dog"], "class_names": list(names)}


def test_two_folders_of_one_number_are_refused(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(ClassMismatch, match="the same number: 01, 1"):
        opened(write(tmp_path, {"1/a.png": png(1), "01/a.png": png(2)}))


def test_a_wrapping_top_folder_is_stepped_into(write: Writer, tmp_path: Path) -> None:
    files = {"pets/cat/a.png": png(1), "pets/dog/a.png": png(2), "pets/README.md": b"mine"}
    source = opened(write(tmp_path, files))
    assert source.class_names == ("cat", "dog")


def test_a_single_class_folder_is_no_wrapping_folder(write: Writer, tmp_path: Path) -> None:
    assert opened(write(tmp_path, {"cat/a.png": png(1)})).class_names == ("cat",)


def test_hidden_files_and_apples_folder_are_not_seen(write: Writer, tmp_path: Path) -> None:
    files = {
        "cat/a.png": png(1),
        "cat/.DS_Store": b"x",
        ".git/config": b"x",
        "__MACOSX/cat/._a.png": b"x",
    }
    source = opened(write(tmp_path, files))
    assert (source.class_names, source.warnings) == (("cat",), ())


def test_other_files_are_left_out_and_counted(write: Writer, tmp_path: Path) -> None:
    files = {"cat/a.png": png(1), "cat/notes.txt": b"hello", "cat/more/b.csv": b"1", "x.md": b""}
    (warning,) = opened(write(tmp_path, files)).warnings
    assert warning.code == "files_ignored"
    assert warning.message.startswith("3 files")
    assert "cat/notes.txt" in warning.message


def test_an_image_without_a_suffix_is_known_by_its_content(write: Writer, tmp_path: Path) -> None:
    source = opened(write(tmp_path, {"cat/a": png(1), "cat/b.dat": encode(pixels(2), "JPEG")}))
    assert list(source.names) == ["cat/a", "cat/b.dat"]


def test_a_class_folder_without_images_is_still_a_class(write: Writer, tmp_path: Path) -> None:
    source = opened(write(tmp_path, {"cat/a.png": png(1), "dog/readme.txt": b"soon"}))
    assert source.class_names == ("cat", "dog")


def test_an_empty_folder_in_a_zip_is_still_a_class(tmp_path: Path) -> None:
    source = opened(as_zip(tmp_path, {"cat/a.png": png(1), "dog/": b""}))
    assert source.class_names == ("cat", "dog")


def test_images_too_deep_are_refused_by_name(write: Writer, tmp_path: Path) -> None:
    files = {"train/cat/a.png": png(1), "val/cat/a.png": png(2)}
    with pytest.raises(DataUnreadable, match=r"(train|val)/cat/a\.png lies too deep"):
        opened(write(tmp_path, files))


def test_images_in_no_class_folder_are_refused(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(DataUnreadable, match=r"a\.png lies in no class folder"):
        opened(write(tmp_path, {"a.png": png(1)}))


def test_data_without_an_image_is_refused(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(DataUnreadable, match="no image"):
        opened(write(tmp_path, {"cat/notes.txt": b"hello"}))


def test_an_empty_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnreadable, match="no image"):
        opened(as_zip(tmp_path, {}))


def test_a_zip_within_a_zip_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnreadable, match=r"no image in it, but README\.md, data\.zip\."):
        opened(as_zip(tmp_path, {"data.zip": b"PK\3\4", "README.md": b"hello"}))


def test_backslashes_in_a_zip_are_folders(tmp_path: Path) -> None:
    source = opened(as_zip(tmp_path, {"cat\\a.png": png(1), "dog\\a.png": png(2)}))
    assert source.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "name", ["../a.png", "cat/../../a.png", "/etc/a.png", "\\a.png", "C:/cat/a.png", "..\\a.png"]
)
def test_a_path_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeArchive) as caught:
        opened(as_zip(tmp_path, {"cat/a.png": png(1), name: png(2)}))
    assert caught.value.data["entry"] == name


@pytest.mark.parametrize(("kind", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "a device")])
def test_a_link_or_device_in_a_zip_is_refused(tmp_path: Path, kind: int, what: str) -> None:
    path = as_zip(tmp_path, {"cat/a.png": png(1)})
    entry = zipfile.ZipInfo("cat/passwd.png")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UnsafeArchive, match=what):
        opened(path)


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    root = as_folder(tmp_path, {"cat/a.png": png(1)})
    os.symlink("/etc/passwd", root / "cat" / "b.png")
    with pytest.raises(UnsafeArchive, match=r"cat/b\.png' is a link"):
        opened(root)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "bomb.zip", {"cat/a.bmp": bytes(80 << 20)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UnsafeArchive, match="times its size"):
        opened(path)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(files=2), "2"),
        (Limits(total_bytes=300), "300"),
        (Limits(image_bytes=100), "100"),
    ],
    ids=["files", "total_bytes", "image_bytes"],
)
def test_data_over_a_limit_is_refused(
    write: Writer, tmp_path: Path, limits: Limits, message: str
) -> None:
    path = write(tmp_path, {f"cat/{i}.png": png(i) for i in range(3)})
    with pytest.raises(UnsafeArchive, match=message):
        open_source(DataSource(path=path), limits)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = as_zip(tmp_path, {"cat/a.png": png(1)})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x03\x04") + 6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(DataUnreadable, match="encrypted"):
        opened(path)


def test_a_zip_cut_short_is_refused(tmp_path: Path) -> None:
    path = as_zip(tmp_path, {f"cat/{i}.png": png(i) for i in range(3)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataUnreadable, match="cannot be read"):
        opened(path)


def test_a_damaged_member_is_a_corrupt_image_with_its_name(tmp_path: Path) -> None:
    path = as_zip(tmp_path, {"cat/a.png": png(1), "cat/b.png": png(2)})
    path.write_bytes(path.read_bytes().replace(png(2)[40:60], bytes(20)))
    source = opened(path)
    with pytest.raises(CorruptImage, match=r"cat/b\.png.*CRC"):
        read_all(source)


def test_a_file_that_went_away_is_a_corrupt_image_with_its_name(tmp_path: Path) -> None:
    root = as_folder(tmp_path, {"cat/a.png": png(1)})
    source = opened(root)
    (root / "cat" / "a.png").unlink()
    with pytest.raises(CorruptImage, match=r"cat/a\.png.*gone"):
        read_all(source)


def test_the_digest_changes_with_the_content(write: Writer, tmp_path: Path) -> None:
    first = opened(write(tmp_path, {"cat/a.png": png(1)}))
    before = first.digest()
    assert first.digest() == before
    assert opened(write(tmp_path, {"cat/a.png": png(1, 9)})).digest() != before


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_every_format_decodes(tmp_path: Path, kind: str) -> None:
    suffix = kind.lower()
    root = as_folder(tmp_path, {f"cat/a.{suffix}": encode(pixels(1), kind)})
    decoded = decode(
        opened(root), np.array([0]), input_size=(8, 8), channels=3, folder=tmp_path / "out"
    )
    assert decoded.images.shape == (1, 3, 8, 8)
