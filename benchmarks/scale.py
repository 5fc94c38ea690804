"""Private memory of a run over ten times the images: it has to stay where it was.

    python -m benchmarks.scale

Makes its data itself, once: CIFAR-10's JPEGs again and again with other brightness (32 x 32), or
enlarged (224 x 224). Each run is a process of its own, `python -m sanitizer run`, as a worker
starts it: one epoch of fine-tuning a small network with random weights. Meanwhile its memory is
read from /proc five times a second; what counts is private memory, which is what a memory map of
the images is not. Prints a table and writes JSON.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from sanitizer.data.image_set import decode
from sanitizer.data.readers import open_source
from sanitizer.events import ResultEvent, StageEvent, parse
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import DataSource

EVALUATION_IMAGES = 500
SAMPLES_A_SECOND = 5
GROUP_ROWS = 1000
"""Rows of a group, as the hub's own writer has them."""
ALLOWED_RATIO = 1.1
ALLOWED_BYTES_AN_IMAGE = {"parquet": 128, "zip": 512}
"""Labels, orders, digests and predictions: 8 to 16 bytes an image each, of a few kinds. Of a zip,
Python keeps a kilobyte an entry while it reads it, and a part of that does not go back to the
system."""
THREADS = (1, 2)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Series:
    """Data sets of one kind, ten times apart.

    Attributes:
        side: Of an image, pixels.
        quality: Of its JPEG.
    """

    name: str
    layout: str
    architecture: str
    side: int
    quality: int
    sizes: tuple[int, int]
    batch_size: int


SERIES = (
    Series("parquet-32", "parquet", "wrn-10-1", 32, 95, (10_000, 100_000), 256),
    Series("zip-32", "zip", "wrn-10-1", 32, 95, (10_000, 100_000), 256),
    Series("parquet-224", "parquet", "shufflenet_v2_x0_5", 224, 90, (1_000, 10_000), 64),
)


@dataclass
class Memory:
    """The highest that was seen of a process, bytes."""

    anonymous: int = 0
    """RssAnon: private, and in memory. Nothing is swapped where the benchmark means anything."""
    private_dirty: int = 0
    """Of smaps_rollup: with it the pages of libraries that were written to."""
    resident: int = 0
    """VmRSS: with it libraries and the parts of the images' map that are mapped in at the time."""

    def take_in(self, other: "Memory") -> None:
        """Keeps the higher of each."""
        for name, value in asdict(other).items():
            setattr(self, name, max(getattr(self, name), value))


@dataclass
class Run:
    """What one run took."""

    images: int
    seconds: float = 0.0
    samples: int = 0
    peak: Memory = field(default_factory=Memory)
    peak_by_stage: dict[str, Memory] = field(default_factory=dict)
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    first_training_batch_seconds: float = 0.0
    """From the start of the process to the stage that trains."""


# --- Data ----------------------------------------------------------------------------------------


def make_data(shared: Path, cache: Path, series: Series, images: int) -> Path:
    """The file with so many clean images, made if it is not there."""
    path = cache / f"clean-{series.side}-{images}.{series.layout}"
    if not path.is_file():
        _write(path, series, shared / "data" / "cifar10" / "train.parquet", images)
    return path


def make_evaluation(shared: Path, cache: Path, series: Series) -> Path:
    """The same few evaluation images for every run of a series."""
    path = cache / f"evaluation-{series.side}.{series.layout}"
    if not path.is_file():
        test = shared / "data" / "cifar10" / "test.parquet"
        _write(path, series, test, EVALUATION_IMAGES)
    return path


def _write(path: Path, series: Series, cifar: Path, images: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write = _write_parquet if series.layout == "parquet" else _write_zip
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        write(part, _enlarged(pool, series, cifar, images))
    part.replace(path)


def _enlarged(
    pool: ThreadPoolExecutor, series: Series, cifar: Path, images: int
) -> Iterator[tuple[bytes, int]]:
    """Encoded images and their classes; the n-th pass over CIFAR-10 is n/255 brighter."""

    def encode(item: tuple[int, bytes, int]) -> tuple[bytes, int]:
        brighter, encoded, label = item
        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        changed = Image.fromarray(np.minimum(pixels, 255 - brighter) + np.uint8(brighter))
        resized = changed.resize((series.side, series.side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        resized.save(buffer, "JPEG", quality=series.quality)
        return buffer.getvalue(), label

    for chunk in _batched(_cifar(cifar, images), GROUP_ROWS):
        yield from pool.map(encode, chunk)


def _cifar(path: Path, images: int) -> Iterator[tuple[int, bytes, int]]:
    left, turn = images, 0
    while left:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000, columns=["img.bytes", "label"]):
                encoded = batch.column("img").field("bytes")
                for image, label in zip(encoded, batch.column("label"), strict=True):
                    yield turn, image.as_py(), label.as_py()
                    left -= 1
                    if not left:
                        return
        turn += 1


def _batched(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, size)):
        yield batch


def _write_parquet(path: Path, items: Iterator[tuple[bytes, int]]) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for number, group in enumerate(_batched(items, GROUP_ROWS)):
            rows = [
                {"bytes": encoded, "path": f"image_{number * GROUP_ROWS + i:06d}.jpg"}
                for i, (encoded, _) in enumerate(group)
            ]
            labels = [label for _, label in group]
            writer.write_table(pa.table([pa.array(rows, image), labels], schema=schema))


def _write_zip(path: Path, items: Iterator[tuple[bytes, int]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, (encoded, label) in enumerate(items):
            archive.writestr(f"{label}/image_{number:06d}.jpg", encoded)


def make_model(cache: Path, series: Series) -> Path:
    """A network with random weights."""
    path = cache / f"{series.architecture}.pth"
    if not path.is_file():
        generator = make_generator("benchmark", "scale")
        network = build_network(series.architecture, 10, 3, generator=generator)
        torch.save({"state_dict": network.state_dict()}, path)
    return path


# --- Decoding ------------------------------------------------------------------------------------


def decode_alone(path: Path, side: int, threads: int, folder: Path) -> float:
    """Seconds to decode all images of a file, in this process."""
    source = open_source(DataSource(path=path))
    begun = time.monotonic()
    decode(
        source,
        np.arange(len(source)),
        input_size=(side, side),
        channels=3,
        folder=folder,
        threads=threads,
    )
    seconds = time.monotonic() - begun
    for written in folder.iterdir():
        written.unlink()
    return seconds


# --- Runs ----------------------------------------------------------------------------------------


def run(series: Series, images: int, files: Mapping[str, Path], out: Path, threads: int) -> Run:
    """One run, watched from its start to its end."""
    folder = out / f"{series.name}-{images}"
    folder.mkdir(parents=True, exist_ok=True)
    training = {
        "phases": [{"epochs": 1, "learning_rate": 0.01}],
        "batch_size": series.batch_size,
    }
    spec = {
        "model": {
            "path": str(files["model"]),
            "architecture": series.architecture,
            "input_size": [series.side, series.side],
        },
        "clean_data": {"path": str(files["clean"])},
        "evaluation_data": {"path": str(files["evaluation"])},
        "method": {"name": "finetune", "training": training},
        "probes": [
            {"kind": "patch", "target_class": 0, "row": 0, "column": 0, "pixels": [[255, 0]]}
        ],
        "device": "cpu",
        "threads": threads,
        "curve_images": 0,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    # The images are decoded anew: a folder that was used before would have them.
    for left in (folder / "out" / "work").rglob("*"):
        if left.is_file():
            left.unlink()
    command = [sys.executable, "-P", "-m", "sanitizer", "run", str(folder / "spec.json")]
    begun = time.monotonic()
    process = subprocess.Popen([*command, "--out", str(folder / "out")], stdout=subprocess.PIPE)
    found = _watch(process, Run(images), begun)
    if process.wait() not in (0, 1):
        raise SystemExit(f"{folder.name} failed with exit code {process.returncode}")
    found.seconds = time.monotonic() - begun
    return found


def _watch(process: "subprocess.Popen[bytes]", found: Run, begun: float) -> Run:
    """Reads the events of a run, and beside that its memory, until its pipe closes."""
    stage = "start"
    entered = begun
    over = threading.Event()

    def sample() -> None:
        while not over.wait(1 / SAMPLES_A_SECOND):
            memory = read_memory(process.pid)
            if memory is not None:
                found.samples += 1
                found.peak.take_in(memory)
                found.peak_by_stage.setdefault(stage, Memory()).take_in(memory)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for line in process.stdout or ():
            event = parse(line)
            if not isinstance(event, StageEvent | ResultEvent):
                continue
            now = time.monotonic()
            found.seconds_by_stage[stage] = now - entered
            entered = now
            stage = event.stage.value if isinstance(event, StageEvent) else "end"
            if stage == "finetune":
                found.first_training_batch_seconds = now - begun
    finally:
        over.set()
        sampler.join()
    return found


def read_memory(pid: int) -> Memory | None:
    """What a process has in memory now; none: it is gone."""
    try:
        status = _kibibytes(Path(f"/proc/{pid}/status").read_text())
        rollup = _kibibytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "RssAnon" not in status or "Private_Dirty" not in rollup:
        return None  # it has just ended
    return Memory(1024 * status["RssAnon"], 1024 * rollup["Private_Dirty"], 1024 * status["VmRSS"])


def _kibibytes(text: str) -> dict[str, int]:
    lines = [line.split() for line in text.splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[-1:] == ["kB"]}


# --- Results -------------------------------------------------------------------------------------


def judge(layout: str, small: Run, large: Run) -> dict[str, Any]:
    """Whether the peak of private memory stayed where it was."""
    more = large.images - small.images
    allowed_an_image = ALLOWED_BYTES_AN_IMAGE[layout]
    allowed = ALLOWED_RATIO * small.peak.anonymous + allowed_an_image * more
    return {
        "ratio": large.peak.anonymous / small.peak.anonymous,
        "bytes_an_image": (large.peak.anonymous - small.peak.anonymous) / more,
        "allowed_bytes_an_image": allowed_an_image,
        "allowed_bytes": int(allowed),
        "is_flat": large.peak.anonymous <= allowed,
    }


def mib(size: int) -> str:
    """Mebibytes."""
    return f"{size / (1 << 20):.0f}"


def print_series(series: Series, result: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """The tables of one series."""
    stages = list(runs[-1].peak_by_stage)
    write = sys.stdout.write
    write(f"\n{series.name}: {series.architecture}, {series.side} x {series.side}\n\n")
    heads = [f"decode s, {n} threads (images/s)" for n in THREADS]
    heads += ["run s", "peak RssAnon MiB", "Private_Dirty", "RSS", *(f"{s} MiB" for s in stages)]
    write(f"| images | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}\n")
    for run, decoded in zip(runs, result["decode_seconds"], strict=True):
        cells = [f"{seconds:.1f} ({run.images / seconds:,.0f})" for seconds in decoded.values()]
        peak = run.peak
        cells += [f"{run.seconds:.0f}", *map(mib, asdict(peak).values())]
        cells += [mib(run.peak_by_stage.get(stage, Memory()).anonymous) for stage in stages]
        write(f"| {run.images:,} | {' | '.join(cells)} |\n")
    judged = result["judgement"]
    write(
        f"\nTen times the images: {judged['ratio']:.3f} times the peak of private memory, "
        f"{judged['bytes_an_image']:.0f} bytes an image more; allowed {ALLOWED_RATIO} times and "
        f"{judged['allowed_bytes_an_image']} bytes an image. "
        f"{'Flat' if judged['is_flat'] else 'NOT flat'}.\n"
    )
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all, prints the tables, writes JSON; 1 if a series is not flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/scale"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/scale"))
    names = [series.name for series in SERIES]
    parser.add_argument("--series", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=1, help="decodings; the median counts")
    parser.add_argument("--only-data", action="store_true", help="make the data and stop")
    options = parser.parse_args(arguments)

    results = []
    for series in SERIES:
        if series.name not in options.series:
            continue
        cleans = [make_data(options.shared, options.cache, series, n) for n in series.sizes]
        files = {
            "model": make_model(options.cache, series),
            "evaluation": make_evaluation(options.shared, options.cache, series),
        }
        if options.only_data:
            continue
        decoded = [
            {
                str(threads): median(
                    decode_alone(path, series.side, threads, options.out / "decode")
                    for _ in range(options.repeat)
                )
                for threads in THREADS
            }
            for path in cleans
        ]
        runs = [
            run(series, n, {**files, "clean": path}, options.out, options.threads)
            for n, path in zip(series.sizes, cleans, strict=True)
        ]
        result = {
            **asdict(series),
            "decode_seconds": decoded,
            "runs": [asdict(run) for run in runs],
            "judgement": judge(series.layout, *runs),
        }
        print_series(series, result, runs)
        results.append(result)
    if options.only_data:
        return 0
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processors": os.cpu_count(),
        "threads": options.threads,
    }
    (options.out / "results.json").write_text(
        json.dumps({"machine": machine, "series": results}, indent=2)
    )
    return int(not all(result["judgement"]["is_flat"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
