import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from sanitizer.data.arrays import NpzSource
from sanitizer.data.readers import open_source
from sanitizer.data.source import Limits
from sanitizer.errors import ClassMismatch, DataUnreadable, UnsafeArchive
from sanitizer.spec import DataSource

from .files import read_all

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(10) % 3


def save(path: Path, **arrays: NDArray[np.generic]) -> Path:
    # The suffix says nothing on purpose: the content decides.
    with path.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays))
    return path


def opened(path: Path, class_names: tuple[str, ...] | None = None) -> NpzSource:
    source = open_source(DataSource(path=path, class_names=class_names))
    assert isinstance(source, NpzSource)
    return source


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        *(("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "targets")),
        *(("x_train", "y_train"), ("test_images", "test_labels"), ("arr_0", "arr_1")),
    ],
)
def test_common_names_of_the_arrays_are_known(tmp_path: Path, images: str, labels: str) -> None:
    arrays: dict[str, NDArray[Any]] = {images: IMAGES, labels: LABELS}
    source = opened(save(tmp_path / "data.bin", **arrays))
    assert source.labels.tolist() == LABELS.tolist()
    assert source.class_names == ("0", "1", "2")
    assert source.names[3] == f"{images}[3]"


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (IMAGES, IMAGES),
        (np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)), IMAGES),
        (IMAGES[..., 0], IMAGES[..., 0]),
        (IMAGES[..., :1], IMAGES[..., :1]),
        (np.ascontiguousarray(IMAGES[:, None, :, :, 0]), IMAGES[..., :1]),
    ],
    ids=["NHWC", "NCHW", "NHW", "NHW1", "N1HW"],
)
def test_every_axis_order_gives_images_height_first(
    tmp_path: Path, stored: NDArray[np.uint8], given: NDArray[np.uint8]
) -> None:
    source = opened(save(tmp_path / "d", images=stored, labels=LABELS))
    read = read_all(source, [7, 0, 7])
    for position, index in enumerate([7, 0, 7]):
        np.testing.assert_array_equal(np.asarray(read[position]), given[index])


def test_images_beyond_one_block_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanitizer.data.arrays._BLOCK_BYTES", 2 * IMAGES[0].nbytes)
    source = opened(save(tmp_path / "d", images=IMAGES, labels=LABELS))
    read = read_all(source)
    for index in range(10):
        np.testing.assert_array_equal(np.asarray(read[index]), IMAGES[index])


def test_labels_may_be_a_column_and_of_any_integer_type(tmp_path: Path) -> None:
    labels = LABELS.astype(np.uint8)[:, None]
    assert opened(save(tmp_path / "d", images=IMAGES, labels=labels)).labels.dtype == np.int64


def test_class_names_of_the_request_name_the_numbers(tmp_path: Path) -> None:
    source = opened(save(tmp_path / "d", images=IMAGES, labels=LABELS), ("a", "b", "c"))
    assert (source.class_names, source.names_are_complete) == (("a", "b", "c"), True)


def test_fewer_class_names_than_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassMismatch, match="classes up to 2, but only 2 names"):
        opened(save(tmp_path / "d", images=IMAGES, labels=LABELS), ("a", "b"))


def test_pickled_arrays_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(ran),)

    images = np.array([Bomb()] * 10, dtype=object)
    with pytest.raises(DataUnreadable, match="unpickling"):
        opened(save(tmp_path / "d", images=images, labels=LABELS))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES, "labels": LABELS}, "no array of images: it has labels, pictures"),
        ({"images": IMAGES}, "no array of labels"),
        ({"images": IMAGES, "x": IMAGES, "y": LABELS}, "more than one array of images"),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS},
            "more than one array of images",
        ),
        (
            {"arr_0": IMAGES, "arr_1": LABELS, "arr_2": IMAGES, "arr_3": LABELS},
            "more than one array of images",
        ),
        ({"images": IMAGES / 255, "labels": LABELS}, "is float64; images are uint8"),
        ({"images": IMAGES, "labels": LABELS / 2}, "is float64; labels are integers"),
        ({"images": IMAGES, "labels": LABELS[:9]}, r"shape \[9\].*expected: \[10\]"),
        ({"images": IMAGES[0], "labels": LABELS[:6]}, None),
        ({"images": IMAGES[..., :2], "labels": LABELS}, r"shape \[10, 6, 5, 2\]"),
        ({"images": IMAGES[:, :3], "labels": LABELS}, "which axis is the channels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no image"),
        ({"images": np.asfortranarray(IMAGES), "labels": LABELS}, "ascontiguousarray"),
    ],
)
def test_arrays_of_another_kind_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], message: str | None
) -> None:
    path = save(tmp_path / "d", **arrays)
    if message is None:
        assert len(opened(path)) == 6  # [6, 5, 3] are six grey images: nothing says otherwise.
        return
    with pytest.raises(DataUnreadable, match=message):
        opened(path)


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassMismatch, match="the class -1"):
        opened(save(tmp_path / "d", images=IMAGES, labels=LABELS - 1))


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d", images=IMAGES, labels=LABELS)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("images.npy")
    raw = bytearray(path.read_bytes())
    middle = entry.header_offset + entry.compress_size // 2
    raw[middle : middle + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(DataUnreadable, match="damaged at images"):
        opened(path)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d", images=IMAGES, labels=LABELS)
    with zipfile.ZipFile(path) as archive:
        raw = archive.read("images.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", raw[:-100])
        archive.writestr("labels.npy", _npy(LABELS, tmp_path))
    with pytest.raises(DataUnreadable, match="ends early"):
        read_all(opened(path))


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((1, 2**32, 2**32, 3), UnsafeArchive),  # 0 in 64 bits
        ((1, 2**31, 2**31, 3), UnsafeArchive),  # negative in 64 bits
        ((1, -4, -4, 3), DataUnreadable),
        ((-1, 4, 4, 3), DataUnreadable),
        ((1, 4, 4, True), DataUnreadable),
        ((1, 0, 4, 3), DataUnreadable),
    ],
    ids=str,
)
def test_a_shape_that_no_array_has_is_refused(
    tmp_path: Path, shape: tuple[int, ...], error: type[Exception]
) -> None:
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    path = tmp_path / "d"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", _npy(LABELS[:1], tmp_path))
    with pytest.raises(error):
        read_all(opened(path))


def test_more_images_than_the_limit_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d", images=IMAGES, labels=LABELS)
    with pytest.raises(UnsafeArchive, match="10 images, at most 9"):
        open_source(DataSource(path=path), Limits(files=9))


def _npy(array: NDArray[np.generic], folder: Path) -> bytes:
    np.save(folder / "array.npy", array)
    return (folder / "array.npy").read_bytes()
