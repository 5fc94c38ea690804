import io
import pickle
import shutil
import subprocess
import tarfile
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


def advice_on(path: Path) -> str:
    """What is said of a file after the name of its kind: how to convert it."""
    with pytest.raises(DataUnreadable) as caught:
        open_source(DataSource(path=path))
    return caught.value.message.partition(" Accepted: ")[0].removesuffix(".")


def test_what_is_advised_for_mnist_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    Path("images").write_bytes(b"\0\0\x08\x03" + sizes + images.tobytes())
    Path("labels").write_bytes(b"\0\0\x08\x01" + (4).to_bytes(4, "big") + bytes([7, 0, 7, 1]))
    codes = [advice_on(Path(n)).partition("of MNIST: ")[2] for n in ("images", "labels")]
    (code,) = set(codes)
    exec(code, {"numpy": np, "IMAGES": "images", "LABELS": "labels"})
    source = open_source(DataSource(path=Path("data.npz")))
    assert source.labels.tolist() == [7, 0, 7, 1]
    (read,) = (payload for _, payload in source.read(np.array([3])))
    assert np.array_equal(read, images[3])


def test_what_is_advised_for_cifar_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    batch = {"data": images.reshape(4, -1), "labels": [0, 1, 0, 1]}
    Path("data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    advice = advice_on(Path("data_batch_1"))
    assert "Loading it runs its code" in advice
    code = "batch = " + advice.partition("batch = ")[2]
    exec(code, {"numpy": np, "FILE": "data_batch_1"})
    (read,) = (
        payload for _, payload in open_source(DataSource(path=Path("data.npz"))).read(np.array([2]))
    )
    assert np.array_equal(read, images[2].transpose(1, 2, 0))


def test_what_is_advised_for_a_tar_archive_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with tarfile.open("FILE", "w") as archive:
        for name in ("cat/a.png", "dog/b.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(png(1))
            archive.addfile(entry, io.BytesIO(png(1)))
    command = advice_on(Path("FILE")).partition("a zip instead: ")[2]
    if shutil.which("zip") is None:
        pytest.skip("there is no zip on PATH")
    subprocess.run(command, shell=True, check=True)
    assert open_source(DataSource(path=Path("data.zip"))).class_names == ("cat", "dog")


def test_a_single_numpy_array_is_told_from_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(DataUnreadable, match=r"numpy\.savez"):
        open_source(DataSource(path=tmp_path / "d.npy"))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.parquet", {"cat/a.png": png(1)})
    assert open_source(DataSource(path=path)).layout == "zip"
