"""Which schedule the preset `fast` should have: chosen by clean, held-out accuracy alone.

    python -m benchmarks.fast_schedule

Runs `python -m sanitizer run` with ARGD on the shared checkpoint, once per candidate and seed:
5,000 images of the training file are drawn, one half is trained on, the other measured. No trigger
is given and the test file is not opened. All candidates begin at the published learning rate of
0.1: the rate is what removes a backdoor, so a lower one would win by accuracy for the wrong reason.
The seeds are not those of `benchmarks.engine_speed`, which then says what the choice is worth.

A run that is there is not repeated.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import run, training_seconds

CANDIDATES: Mapping[str, tuple[Sequence[float], Sequence[float], int]] = {
    "paper": ((0.1,) * 3 + (0.01,) * 3 + (0.001,) * 4,) * 2 + (64,),
    "4+4, 2 high": ((0.1, 0.1, 0.01, 0.001),) * 2 + (64,),
    "4+4, falling": ((0.1, 0.05, 0.02, 0.005),) * 2 + (64,),
    "3+3, 1 high": ((0.1, 0.01, 0.001),) * 2 + (64,),
    "3+3, falling": ((0.1, 0.03, 0.01),) * 2 + (64,),
    "2+4": ((0.1, 0.01), (0.1, 0.05, 0.02, 0.005), 64),
    "4+3": ((0.1, 0.05, 0.02, 0.005), (0.1, 0.03, 0.01), 64),
    "4+4, batch 128": ((0.1, 0.05, 0.02, 0.005),) * 2 + (128,),
    "3+3, batch 128": ((0.1, 0.03, 0.01),) * 2 + (128,),
}
"""Learning rates of teacher and student, epoch by epoch, and the batch size."""


def run_candidate(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """One job: held-out accuracy, and the seconds of its epochs."""
    data = options.shared / "data"
    teacher, student, batch_size = CANDIDATES[name]
    spec = {
        "model": {"path": str(data / "models" / "argd-gridtrigger-wrn-16-1.pth.tar")},
        "clean_data": {
            "path": str(data / "cifar10" / "train.parquet"),
            "images": 5000,
            "seed": seed,
        },
        "holdout": 0.5,
        "method": {
            "name": "argd",
            "preset": "paper",
            "teacher": training(teacher, batch_size),
            "student": training(student, batch_size),
        },
        "seed": seed,
        "curve_images": 0,
    }
    folder = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    report = run(spec, folder, threads=options.threads)
    return {"accuracy": report.after.accuracy.value, "seconds": training_seconds(report)}


def training(rates: Sequence[float], batch_size: int) -> dict[str, Any]:
    """The part of a request that says how to train."""
    phases = [{"epochs": 1, "learning_rate": rate} for rate in rates]
    return {"phases": phases, "batch_size": batch_size}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/fast_schedule"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)

    rows = []
    for seed in options.seeds:
        for name in CANDIDATES:
            result = run_candidate(options, name, seed)
            rows.append({"name": name, "seed": seed, **result})
            sys.stderr.write(
                f"{name}, seed {seed}: {result['accuracy']:.2%}, {result['seconds']:.0f} s\n"
            )
    lines = ["| schedule | held-out ACC %, mean | per seed | training, s |", "|---" * 4 + "|"]
    for name in CANDIDATES:
        mine = [row for row in rows if row["name"] == name]
        per_seed = [100 * row["accuracy"] for row in mine]
        seconds = statistics.median(row["seconds"] for row in mine)
        lines.append(
            f"| {name} | {statistics.mean(per_seed):.2f} "
            f"| {', '.join(f'{value:.2f}' for value in per_seed)} | {seconds:.1f} |"
        )
    sys.stdout.write(
        "\n".join(lines) + f"\n\n{options.threads} threads, torch {torch.__version__}\n"
    )
    (options.out / "results.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
