import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sanitizer.data.image_set import ImageSet, decode
from sanitizer.data.readers import open_source
from sanitizer.data.source import ImageSource, Payload
from sanitizer.data.splits import draw
from sanitizer.errors import CorruptImage, DataUnreadable, OutOfDisk
from sanitizer.spec import DataSource

from .files import encode, pixels, png, run_apart, write_tree


def source_of(root: Path, images: int = 6, side: int = 8) -> ImageSource:
    """Images 0.png to n.png in turn in the classes a and b."""
    files = {f"{'ab'[i % 2]}/{i:03}.png": png(i, side, side) for i in range(images)}
    return open_source(DataSource(path=write_tree(root / "data", files)))


def decoded(
    source: ImageSource,
    folder: Path,
    *,
    size: tuple[int, int] = (8, 8),
    channels: int = 3,
    indices: list[int] | None = None,
) -> ImageSet:
    chosen = np.arange(len(source)) if indices is None else np.array(indices)
    return decode(source, chosen, input_size=size, channels=channels, folder=folder, threads=2)


def count_reads(source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    original = source.read

    def read(indices: NDArray[np.int64]) -> Iterator[tuple[int, Payload]]:
        reads.append(len(indices))
        return original(indices)

    monkeypatch.setattr(source, "read", read)
    return reads


def build_large_set() -> ImageSet:
    """Nine images of a megabyte."""
    rows = np.arange(9, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(rows, (9, 1, 1024, 1024)).copy()
    return ImageSet.from_arrays(images, np.zeros(9, np.int64))


def test_images_are_decoded_in_the_order_of_the_indices(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    result = decoded(source, tmp_path / "out", indices=[5, 0, 3])
    assert list(result.names) == [source.names[i] for i in (5, 0, 3)]
    assert result.labels.tolist() == source.labels[[5, 0, 3]].tolist()
    for image, name in zip(result.images, result.names, strict=True):
        expected = pixels(int(name.split("/")[1][:3])).transpose(2, 0, 1)
        np.testing.assert_array_equal(image, expected)


def test_many_images_keep_their_places_under_parallel_decoding(tmp_path: Path) -> None:
    side = 40  # more than the few kilobytes that one thread decodes alone
    result = decoded(source_of(tmp_path, 600, side), tmp_path / "out", size=(side, side))
    for index in range(0, 600, 7):
        seed = int(result.names[index].split("/")[1][:3])
        expected = pixels(seed, side, side).transpose(2, 0, 1)
        np.testing.assert_array_equal(result.images[index], expected)


def test_the_images_are_a_read_only_memory_map(tmp_path: Path) -> None:
    images = decoded(source_of(tmp_path), tmp_path / "out").images
    assert isinstance(images, np.memmap)
    assert (images.dtype, images.shape) == (np.uint8, (6, 3, 8, 8))
    assert not images.flags.writeable


def test_digest_is_of_the_pixels_of_one_image(tmp_path: Path) -> None:
    image_set = decoded(source_of(tmp_path), tmp_path / "out", indices=[3, 0, 3])
    digests = image_set.digests()
    assert digests.dtype == np.uint8
    assert digests.shape == (3, 16)
    expected = hashlib.blake2b(pixels(1).transpose(2, 0, 1).tobytes(), digest_size=16)
    assert image_set.names[0] == "b/001.png"
    assert digests[0].tobytes() == digests[2].tobytes() == expected.digest()
    assert digests[1].tobytes() != digests[0].tobytes()


def test_digests_of_more_images_than_are_read_at_once_are_those_of_each() -> None:
    image_set = build_large_set()
    told: list[tuple[int, int]] = []
    digests = image_set.digests(lambda done, total: told.append((done, total)))
    alone = [image_set.subset(np.array([i])).digests()[0] for i in range(len(image_set))]
    np.testing.assert_array_equal(digests, alone)
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_images_of_another_size_are_resized_and_counted(tmp_path: Path) -> None:
    files = {"a/0.png": png(0), "a/1.png": png(1, 20, 10)}
    source = open_source(DataSource(path=write_tree(tmp_path / "data", files)))
    result = decoded(source, tmp_path / "out")
    assert (result.images.shape, result.resized) == ((2, 3, 8, 8), 1)
    assert decoded(source, tmp_path / "out").resized == 1


def test_channels_follow_the_model(tmp_path: Path) -> None:
    result = decoded(source_of(tmp_path), tmp_path / "out", channels=1)
    assert result.images.shape == (6, 1, 8, 8)


def test_a_model_of_four_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnreadable, match="4 channels"):
        decoded(source_of(tmp_path), tmp_path / "out", channels=4)


def test_a_finished_decoding_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path)
    first = decoded(source, tmp_path / "out")
    reads = count_reads(source, monkeypatch)
    again = decoded(source, tmp_path / "out")
    assert reads == []
    np.testing.assert_array_equal(first.images, again.images)


@pytest.mark.parametrize("change", ["indices", "size", "channels", "content"])
def test_another_decoding_in_the_same_folder_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = source_of(tmp_path)
    decoded(source, tmp_path / "out")
    if change == "content":
        (tmp_path / "data" / "a" / "000.png").write_bytes(png(99, 9, 9))
    reads = count_reads(source, monkeypatch)
    match change:
        case "indices":
            decoded(source, tmp_path / "out", indices=[1, 0])
        case "size":
            decoded(source, tmp_path / "out", size=(8, 9))
        case "channels":
            decoded(source, tmp_path / "out", channels=1)
        case _:
            decoded(source, tmp_path / "out")
    assert len(reads) == 1


@pytest.mark.parametrize("lost", ["images-*.json", "images-*.npy"])
def test_an_unfinished_decoding_starts_again(tmp_path: Path, lost: str) -> None:
    source = source_of(tmp_path)
    first = np.array(decoded(source, tmp_path / "out").images)
    (path,) = (tmp_path / "out").glob(lost)
    path.unlink()
    np.testing.assert_array_equal(decoded(source, tmp_path / "out").images, first)


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    first = np.array(decoded(source, tmp_path / "out").images)
    (array,) = (tmp_path / "out").glob("images-*.npy")
    (marker,) = (tmp_path / "out").glob("images-*.json")
    array.rename(f"{array}.part")
    marker.unlink()
    (tmp_path / "out" / f"{array.name}.part").write_bytes(bytes(5000))
    np.testing.assert_array_equal(decoded(source, tmp_path / "out").images, first)
    assert sorted((tmp_path / "out").iterdir()) == sorted([array, marker])


def test_an_array_cut_short_is_decoded_again(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    first = np.array(decoded(source, tmp_path / "out").images)
    (path,) = (tmp_path / "out").glob("images-*.npy")
    os.truncate(path, 200)
    np.testing.assert_array_equal(decoded(source, tmp_path / "out").images, first)


def test_a_corrupt_image_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    files = {f"a/{i}.jpg": encode(pixels(i, 32, 32), "JPEG") for i in range(40)}
    files["a/23.jpg"] = files["a/23.jpg"][:-200]
    source = open_source(DataSource(path=write_tree(tmp_path / "data", files)))
    with pytest.raises(CorruptImage) as caught:
        decoded(source, tmp_path / "out")
    assert caught.value.data["image"] == "a/23.jpg"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = source_of(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutOfDisk, match="6 images, which take 1,152 bytes"):
        decoded(source, tmp_path / "out")


def test_progress_ends_with_all(tmp_path: Path) -> None:
    source, told = source_of(tmp_path, 300), list[tuple[int, int]]()
    for _ in range(2):
        decode(
            source,
            np.arange(300),
            input_size=(8, 8),
            channels=3,
            folder=tmp_path / "out",
            on_progress=lambda done, total: told.append((done, total)),
        )
    assert told == [(256, 300), (300, 300), (300, 300)]


def test_no_images_make_an_empty_set(tmp_path: Path) -> None:
    result = decoded(source_of(tmp_path), tmp_path / "out", indices=[])
    assert (len(result), result.images.shape) == (0, (0, 3, 8, 8))


def build_set(images: int = 10) -> ImageSet:
    return ImageSet.from_arrays(
        np.random.default_rng(0).integers(0, 256, (images, 1, 4, 4), dtype=np.uint8),
        np.arange(images) % 3,
    )


def test_a_subset_of_a_subset_has_the_right_images() -> None:
    whole = build_set()
    part = whole.subset(np.array([8, 2, 5, 1])).subset(np.array([3, 0]))
    np.testing.assert_array_equal(part.images, whole.images[[1, 8]])
    np.testing.assert_array_equal(part.read(np.array([1])), whole.images[[8]])
    assert part.labels.tolist() == [1, 2]
    assert list(part.names) == ["image 1", "image 8"]


def test_reading_copies() -> None:
    whole = build_set()
    whole.read(np.array([0]))[:] = 0
    assert whole.images[0].any()


def test_images_are_counted_by_class() -> None:
    assert build_set().class_counts(5) == [4, 3, 3, 0, 0]


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1, 4, 4)), np.zeros((3, 1, 4, 4), "u1")]
)
def test_arrays_that_do_not_fit_are_refused(images: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"images are uint8|3 images, 2 labels"):
        ImageSet.from_arrays(images, np.zeros(2, np.int64))


@pytest.mark.real_data
def test_2500_images_of_cifar10_are_drawn_and_decoded(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "cifar10" / "train.parquet"
    if not path.is_file():
        pytest.skip(f"no CIFAR-10 at {path}: set SANITIZER_TEST_SHARED to the folder that has it")
    source = open_source(DataSource(path=path))
    assert (len(source), source.class_names[0]) == (50_000, "airplane")
    indices = draw(source.labels, 2500, 0)
    result = decode(source, indices, input_size=(32, 32), channels=3, folder=tmp_path)
    assert result.class_counts(10) == [250] * 10
    assert result.resized == 0
    # The mean colour of CIFAR-10, as everybody's normalisation has it: 0.491, 0.482, 0.447.
    mean = result.images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.491, 0.482, 0.447], atol=0.01)


def test_images_that_may_not_be_written_are_told_before_one_is_decoded(tmp_path: Path) -> None:
    write_tree(tmp_path / "data", {f"a/{i:03}.png": png(i, 8, 8) for i in range(40)})
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from sanitizer.data.image_set import decode\n"
        "from sanitizer.data.readers import open_source\n"
        "from sanitizer.errors import ImagesTooLarge\n"
        "from sanitizer.spec import DataSource\n"
        "folder = Path(sys.argv[1])\n"
        "source = open_source(DataSource(path=folder / 'data'))\n"
        "limits = (4096 + 30 * 3 * 64, resource.RLIM_INFINITY)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, limits)\n"
        "def decoded(count):\n"
        "    places = np.arange(count)\n"
        "    return decode(source, places, input_size=(8, 8), channels=3, folder=folder)\n"
        "assert len(decoded(30)) == 30\n"
        "try: decoded(31)\n"
        "except ImagesTooLarge as error: print(error.message)\n"
    )
    told = run_apart(program, tmp_path)
    assert "31 images of 3 x 8 x 8 values take 10,048 bytes" in told
    assert "a run may write 9,856 into a file. Ask for 30 or fewer" in told
