"""Real image files and data sets, made in a folder."""

import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from sanitizer.data.source import ImageSource


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    """Noise, [H, W, C] or [H, W]."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: NDArray[np.uint8] | Image.Image, kind: str = "PNG") -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind)
    return buffer.getvalue()


def png(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> bytes:
    return encode(pixels(seed, height, width, channels))


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(
    path: Path, files: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Names that end in a slash become folders."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: pa.Array,
    *,
    names: tuple[str, str] = ("image", "label"),
    paths: Sequence[str | None] | None = None,
    row_group_size: int = 4,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A table in the layout of the Hugging Face hub."""
    columns = pa.StructArray.from_arrays(
        [
            pa.array(images, pa.binary()),
            pa.array(paths if paths is not None else [None] * len(images), pa.string()),
        ],
        ["bytes", "path"],
    )
    table = pa.table({names[0]: columns, names[1]: labels})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


def read_all(source: ImageSource, indices: Sequence[int] | None = None) -> dict[int, object]:
    """What `read` gives, by position."""
    chosen = np.arange(len(source)) if indices is None else np.array(indices, dtype=np.int64)
    return dict(source.read(chosen))


def run_apart(program: str, argument: Path) -> str:
    """What a program prints in a process of its own: limits and peaks are a whole process's."""
    command = [sys.executable, "-c", program, str(argument)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
