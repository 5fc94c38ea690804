import select
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from sanitizer.data.augment import augment
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.errors import NotEnoughImages
from sanitizer.randomness import make_generator
from sanitizer.spec import Training

from .files import encode, pixels, write_parquet

CPU = torch.device("cpu")
PROGRAM = Path(__file__).with_name("reading_program.py")


def build_set(images: int) -> ImageSet:
    """Every pixel of an image is its number."""
    numbers = np.arange(images, dtype=np.uint8)
    return ImageSet.from_arrays(
        np.broadcast_to(numbers[:, None, None, None], (images, 1, 4, 4)).copy(),
        numbers.astype(np.int64) % 3,
    )


def numbers_of(images: Tensor) -> list[int]:
    return [round(value) for value in (images[:, 0, 0, 0] * 255).tolist()]


def plain(images: int, batch_size: int) -> Batches:
    return Batches(build_set(images), None, batch_size, CPU, (1, "teacher"))


def test_an_epoch_shows_every_image_once_with_its_label() -> None:
    seen: list[int] = []
    for images, labels in plain(10, 4).epoch(0):
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.tolist() == [n % 3 for n in numbers_of(images)]
        seen += numbers_of(images)
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))


def test_an_epoch_of_few_images_shows_each_as_often_and_in_another_order() -> None:
    training = Training(least_epoch_images=25, crop_padding=0, horizontal_flip=False, cutout_size=0)
    batches = Batches(build_set(10), training, 4, CPU, (1, "teacher"))
    assert batches.steps_per_epoch == 6  # 24 images: one alone makes no batch
    seen = [n for images, _ in batches.epoch(0) for n in numbers_of(images)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]
    again = [n for images, _ in batches.epoch(0, 3) for n in numbers_of(images)]
    assert again == seen[12:]


def test_every_epoch_has_another_order_and_every_seed() -> None:
    orders = [
        [n for images, _ in plain(20, 4).epoch(e) for n in numbers_of(images)] for e in (0, 1)
    ]
    other = Batches(build_set(20), None, 4, CPU, (2, "teacher"))
    orders.append([n for images, _ in other.epoch(0) for n in numbers_of(images)])
    assert len({tuple(order) for order in orders}) == 3


def test_a_set_that_is_large_enough_is_gone_through_once() -> None:
    settings = {"crop_padding": 0, "horizontal_flip": False, "cutout_size": 0}
    batches = [
        Batches(build_set(10), Training.model_validate(given), 4, CPU, (1, "teacher"))
        for given in (settings, {**settings, "least_epoch_images": 10})
    ]
    plain, least = ([numbers_of(images) for images, _ in each.epoch(3)] for each in batches)
    assert plain == least


def test_pixels_are_between_0_and_1() -> None:
    images = np.array([0, 51, 255, 102], dtype=np.uint8).reshape(4, 1, 1, 1)
    image_set = ImageSet.from_arrays(images, np.zeros(4, np.int64))
    (batch,) = Batches(image_set, None, 4, CPU, (0,)).epoch(0)
    assert torch.equal(batch[0].flatten().sort().values, torch.tensor([0, 0.2, 0.4, 1]))


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (3, 4, [3]), (2, 2, [2])],
)
def test_the_last_batch_is_kept_unless_it_is_one_image_alone(
    images: int, batch_size: int, sizes: list[int]
) -> None:
    batches = plain(images, batch_size)
    assert [len(labels) for _, labels in batches.epoch(0)] == sizes
    assert batches.steps_per_epoch == len(sizes)


@pytest.mark.parametrize("resident_bytes", [0, 1 << 20], ids=["from the map", "resident"])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_taken_up_at_any_step_goes_on_with_the_same_batches(
    start: int, resident_bytes: int
) -> None:
    def build() -> Batches:
        return Batches(build_set(40), Training(), 10, CPU, (1,), resident_bytes=resident_bytes)

    whole = list(build().epoch(3))
    rest = list(build().epoch(3, start))
    assert len(rest) == 4 - start
    for (images, labels), (expected, expected_labels) in zip(rest, whole[start:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_a_set_read_from_the_map_gives_what_a_resident_one_gives() -> None:
    settings = (Training(), 10, CPU, (1,))
    resident = Batches(build_set(40), *settings, resident_bytes=1 << 20).epoch(0)
    mapped = Batches(build_set(40), *settings).epoch(0)
    for (left, left_labels), (right, right_labels) in zip(resident, mapped, strict=True):
        assert torch.equal(left, right)
        assert torch.equal(left_labels, right_labels)


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(build_set(40), None, 40, CPU, (seed,))
        return numbers_of(next(batches.epoch(epoch))[0])

    orders = [order(1, 0), order(1, 1), order(2, 0)]
    assert orders[0] == order(1, 0)
    assert len({tuple(o) for o in orders}) == 3


def test_augmentation_is_a_function_of_seed_epoch_and_step() -> None:
    training = Training()
    image_set = build_set(40)
    augmented = list(Batches(image_set, training, 10, CPU, (1, "distil")).epoch(2))
    clean = list(Batches(image_set, None, 10, CPU, (1, "distil")).epoch(2))
    for step, ((images, _), (expected, _)) in enumerate(zip(augmented, clean, strict=True)):
        generator = make_generator(1, "distil", "augment", 2, step)
        assert torch.equal(images, augment(expected, training, generator))


def test_a_subset_gives_its_own_images() -> None:
    part = build_set(40).subset(np.array([30, 7, 12]))
    batches = Batches(part, None, 3, CPU, (1,))
    assert sorted(numbers_of(next(batches.epoch(0))[0])) == [7, 12, 30]


@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images_are_refused(images: int) -> None:
    with pytest.raises(NotEnoughImages, match=f"{images} images came to train on"):
        plain(images, 4)


# --- Memory ---------------------------------------------------------------------------------------

JPEGS = [encode(pixels(seed, 32, 32), "JPEG") for seed in range(10)]


def make_npz(path: Path, images: int) -> None:
    whole = np.zeros((images, 32, 32, 3), np.uint8)
    with path.open("wb") as file:
        np.savez(file, images=whole, labels=np.arange(images) % 10)


def make_zip(path: Path, images: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(images):
            archive.writestr(f"{i % 10}/{i:06}.jpg", JPEGS[i % 10])


def make_parquet(path: Path, images: int) -> None:
    """One row group, as writers that do not think of images make them."""
    encoded = [JPEGS[i % 10] for i in range(images)]
    paths = [f"image_{i:06}.jpg" for i in range(images)]
    labels = pa.array(np.arange(images) % 10)
    write_parquet(path, encoded, labels, paths=paths, row_group_size=images)


def peak_bytes(process: "subprocess.Popen[str]", path: Path, images: int) -> int:
    """The most private memory that the program has while it takes in the images of a file."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    highest = 0
    deadline = time.monotonic() + 60
    while not select.select([process.stdout], [], [], 0.005)[0]:
        highest = max(highest, private_bytes(process.pid))
        assert time.monotonic() < deadline
    assert process.stdout.readline() == f"{images}\n"
    return highest


def private_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of private memory")
@pytest.mark.parametrize(
    ("make", "bytes_an_image"),
    # Decoded, an image has 3,072. Of a zip, Python keeps a kilobyte an entry while it is opened;
    # Arrow fills its buffers little by little: 1,553 were seen on a busy machine.
    [(make_npz, 500), (make_zip, 1500), (make_parquet, 2000)],
    ids=["npz", "zip", "parquet"],
)
def test_private_memory_does_not_grow_with_the_images(
    make: Callable[[Path, int], None], bytes_an_image: int, tmp_path: Path
) -> None:
    few, many = 5_000, 20_000
    make(tmp_path / "few", few)
    make(tmp_path / "many", many)
    with subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        # Twice: what a first reading sets up is not the images'.
        before = max(peak_bytes(process, tmp_path / "few", few) for _ in range(2))
        after = peak_bytes(process, tmp_path / "many", many)
    assert (after - before) / (many - few) < bytes_an_image
