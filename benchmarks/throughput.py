"""How much of a bare training loop's throughput the engine reaches, for larger networks.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --device cuda

The bare loop runs the network forward and backward on one batch of noise that is already on the
device, and does nothing else: no data, no augmentation, no figures, no update. The engine
fine-tunes on as many images with all of that, through the same `train` a job runs. Both compute in
the same precision and memory layout, in turns; the first epoch and the first steps are warm-up.
Prints images per second, medians and their ratio within turns, and writes JSON.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sanitizer.compute import choose_precision, computing_in, device_name, prepare
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import LoopHooks, train
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Phase, Precision, Training

CLASSES = 10


@dataclass(frozen=True)
class Work:
    """What is run: a network on images of one size."""

    architecture: str
    pixels: int


WORK = (Work("wrn-16-1", 32), Work("preact_resnet18", 32), Work("resnet50", 224))


class _Seconds(LoopHooks):
    """Of each epoch; reading an epoch's figures waits for the device."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:  # noqa: ARG002  # the hook's
        self.epochs.append(values["seconds"])


def build(work: Work, device: torch.device) -> nn.Module:
    """The network as the pipeline has it."""
    network = build_network(work.architecture, CLASSES, 3, generator=make_generator(0))
    return network.to(device).to(memory_format=torch.channels_last).train()


def bare_seconds(
    network: nn.Module,
    work: Work,
    batch: int,
    steps: int,
    device: torch.device,
    precision: torch.dtype,
) -> float:
    """Seconds of `steps` passes forward and backward."""
    images = torch.rand(batch, 3, work.pixels, work.pixels, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,), device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(steps):
        with computing_in(precision, device):
            logits = network(images)
        functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]  # torch's own
        for parameter in network.parameters():
            parameter.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def engine_seconds(
    network: nn.Module,
    work: Work,
    batch: int,
    steps: int,
    epochs: int,
    device: torch.device,
    precision: torch.dtype,
) -> list[float]:
    """Seconds of each epoch of `steps` steps of fine-tuning, the first left out."""
    generator = np.random.default_rng(0)
    shape = (batch * steps, 3, work.pixels, work.pixels)
    images = generator.integers(256, size=shape, dtype=np.uint8)
    clean = ImageSet.from_arrays(images, generator.integers(CLASSES, size=len(images)))
    training = Training(phases=(Phase(epochs=epochs + 1, learning_rate=1e-4),), batch_size=batch)
    batches = Batches(clean, training, batch, device, (0, "throughput"))
    seconds = _Seconds()
    train(FinetuneStep(network, precision), batches, training, (0, "network"), hooks=seconds)
    network.train()
    return seconds.epochs[1:]


def compare(work: Work, options: argparse.Namespace) -> dict[str, object]:
    """One network's figures."""
    device = torch.device(options.device)
    precision = choose_precision(Precision(options.precision), device)
    network = build(work, device)
    bare: list[float] = []
    engine: list[float] = []
    bare_seconds(network, work, options.batch, 2, device, precision)
    for _ in range(options.turns):
        bare.append(bare_seconds(network, work, options.batch, options.steps, device, precision))
        engine.append(
            statistics.median(
                engine_seconds(network, work, options.batch, options.steps, 2, device, precision)
            )
        )
    images = options.batch * options.steps
    return {
        "architecture": work.architecture,
        "pixels": work.pixels,
        "precision": str(precision).removeprefix("torch."),
        "bare_images_per_second": images / statistics.median(bare),
        "engine_images_per_second": images / statistics.median(engine),
        "ratio": statistics.median(b / e for b, e in zip(bare, engine, strict=True)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=[p.value for p in Precision])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, help="of an epoch; 4 on a CPU, 40 on a GPU")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("var/throughput"))
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = 40 if options.device == "cuda" else 4
    prepare(options.threads)

    lines = [
        "| network | pixels | bare loop, images/s | engine, images/s | ratio |",
        "|---" * 5 + "|",
    ]
    rows = []
    for work in WORK:
        row = compare(work, options)
        rows.append(row)
        lines.append(
            f"| {work.architecture} | {work.pixels} | {row['bare_images_per_second']:.1f} "
            f"| {row['engine_images_per_second']:.1f} | {row['ratio']:.2f} |"
        )
        sys.stderr.write(lines[-1] + "\n")
    where = device_name(torch.device(options.device))
    sys.stdout.write(
        "\n".join(lines)
        + f"\n\n{where}, {options.threads} threads, torch {torch.__version__}, "
        + f"{rows[0]['precision']}, batches of {options.batch}, n = {options.turns} turns\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
