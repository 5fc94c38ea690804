"""How fast the engine is: whole ARGD jobs by the engine and by a plain reference loop, in one run.

    python -m benchmarks.engine_speed --rounds 5

Each round runs, in turning order and each as a process of its own, `benchmarks.reference_loop`
(what a researcher would write) and `python -m sanitizer run` with each preset: same model (the ARGD
authors' WRN-16-1), same 2,500 clean images, same seed, measured before and after on the same test
file. The round's number is the seed of draw and training. Prints medians over rounds, ratios within
rounds, ACC and ASR, and writes JSON. A round that is there is not repeated.

The first epoch of each stage is its warm-up: epoch times are medians of the later ones.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_checkpoint import PROBE, figures
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.report.model import Report

REFERENCE = "reference"
STAGES = ("teacher", "distil")
EMULATED = 2e9
"""A type slower than this, operations a second, is not the processor's own."""
FORWARD_PASSES = {"teacher": 3, "distil": 4}
"""A backward pass counts as two forward ones; distillation has the teacher's forward besides."""


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few matrix products, floating-point operations a second."""
    # A processor that emulates a type would take minutes for the large product.
    small = _best_product(device, dtype, size=256, times=2)
    return small if small < EMULATED else _best_product(device, dtype, size=2048, times=8)


def _best_product(device: torch.device, dtype: torch.dtype, size: int, times: int) -> float:
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def measure_peaks(device: torch.device) -> dict[str, float]:
    """The peak of each type that networks compute in, by name."""
    types = (torch.float32, torch.bfloat16)
    return {str(dtype).removeprefix("torch."): measure_peak(device, dtype) for dtype in types}


def forward_operations() -> int:
    """Floating-point operations of one forward pass of one image through a WRN-16-1."""
    network = build_network("wrn-16-1", 10, 3, generator=make_generator(0)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return int(counter.get_total_flops())


def run_child(command: list[str], folder: Path) -> dict[str, float]:
    """Runs a process to its end; seconds and peak memory of all of it.

    Raises:
        SystemExit: It failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed; see {folder}")
    return {
        "wall_seconds": time.perf_counter() - begun,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }


def run_reference(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One job of the reference loop."""
    command = [sys.executable, "-m", "benchmarks.reference_loop", "--seed", str(seed)]
    for name in ("shared", "images", "epochs", "threads", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    taken = run_child(command, folder)
    said = json.loads((folder / "stdout").read_text())
    return {
        **taken,
        "after": said["after"],
        "stage_seconds": said["seconds"],
        "epoch_seconds": said["epoch_seconds"],
    }


def run_engine(options: argparse.Namespace, preset: str, seed: int, folder: Path) -> dict[str, Any]:
    """One job of the engine."""
    data = options.shared / "data"
    method: dict[str, Any] = {"name": "argd", "preset": preset}
    if options.epochs != 10 and preset == "paper":
        phases = [
            {"epochs": 1, "learning_rate": 0.1 if e < 3 else 0.01 if e < 6 else 0.001}
            for e in range(options.epochs)
        ]
        method |= {"teacher": {"phases": phases}, "student": {"phases": phases}}
    spec = {
        "model": {"path": str(data / "models" / "argd-gridtrigger-wrn-16-1.pth.tar")},
        "clean_data": {
            "path": str(data / "cifar10" / "train.parquet"),
            "images": options.images,
            "seed": seed,
        },
        "evaluation_data": {"path": str(data / "cifar10" / "test.parquet")},
        "method": method,
        "probes": [PROBE],
        "seed": seed,
        "threads": options.threads,
        "device": options.device,
        "precision": options.precision,
        "curve_images": 0,
        "screen": False,  # The reference does not look for images with a trigger either.
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "sanitizer", "run", str(folder / "spec.json")]
    taken = run_child(command + ["--out", str(folder / "out")], folder)
    report = Report.model_validate_json((folder / "out" / "report.json").read_bytes())
    return {
        **taken,
        "after": figures(report.after),
        "precision": report.precision,
        "stage_seconds": {stage.stage: stage.seconds for stage in report.stages},
        "epoch_seconds": {
            stage.stage: [epoch.values["seconds"] for epoch in stage.epochs]
            for stage in report.stages
            if stage.epochs
        },
    }


def rounds(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each round took and gave, by contestant."""
    contestants = [REFERENCE, *options.presets]
    for number in range(options.rounds):
        path = options.out / f"round-{number}.json"
        results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        # In the round, so that the machine is as busy or idle as it is for the contestants.
        results.setdefault("peaks", measure_peaks(torch.device(options.device)))
        # Whoever runs first finds the machine as the round before left it: take turns.
        turn = number % len(contestants)
        for name in contestants[turn:] + contestants[:turn]:
            if name in results:
                continue
            folder = options.out / f"round-{number}" / name
            results[name] = (
                run_reference(options, number, folder)
                if name == REFERENCE
                else run_engine(options, name, number, folder)
            )
            sys.stderr.write(f"round {number}, {name}: {results[name]['wall_seconds']:.1f} s\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=2))
        yield results


def training_seconds(result: dict[str, Any]) -> float:
    """Seconds of all epochs of a job."""
    return float(sum(sum(epochs) for epochs in result["epoch_seconds"].values()))


def summarise(
    name: str, results: Sequence[dict[str, Any]], options: argparse.Namespace, peak: float
) -> dict[str, Any]:
    """Medians over rounds, and ratios to the reference within them."""
    mine = [result[name] for result in results]
    base = [result[REFERENCE] for result in results]

    def ratio(figure: str) -> float:
        pairs = zip(mine, base, strict=True)
        if figure == "training":
            return statistics.median(training_seconds(a) / training_seconds(b) for a, b in pairs)
        return float(statistics.median(a[figure] / b[figure] for a, b in pairs))

    epoch = {
        stage: statistics.median(
            statistics.median(result["epoch_seconds"][stage][1:] or result["epoch_seconds"][stage])
            for result in mine
        )
        for stage in STAGES
    }
    operations = forward_operations() * options.images
    return {
        "name": name,
        "wall_seconds": statistics.median(result["wall_seconds"] for result in mine),
        "training_seconds": statistics.median(map(training_seconds, mine)),
        "epoch_seconds": epoch,
        "images_per_second": {stage: options.images / epoch[stage] for stage in STAGES},
        "share_of_peak": {
            stage: FORWARD_PASSES[stage] * operations / epoch[stage] / peak for stage in STAGES
        },
        "peak_memory_bytes": statistics.median(result["peak_memory_bytes"] for result in mine),
        "acc": statistics.mean(result["after"]["acc"] for result in mine),
        "asr": statistics.mean(result["after"]["asr"] for result in mine),
        "wall_ratio": ratio("wall_seconds"),
        "training_ratio": ratio("training"),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary, for people."""
    lines = [
        "| | whole job, s | ratio | training, s | ratio | epoch of teacher / student, s "
        "| images/s | share of peak | peak memory, MB | ACC % | ASR % |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        epoch, speed, share = row["epoch_seconds"], row["images_per_second"], row["share_of_peak"]
        lines.append(
            f"| {row['name']} | {row['wall_seconds']:.1f} | {row['wall_ratio']:.2f} "
            f"| {row['training_seconds']:.1f} | {row['training_ratio']:.2f} "
            f"| {epoch['teacher']:.2f} / {epoch['distil']:.2f} "
            f"| {speed['teacher']:.0f} / {speed['distil']:.0f} "
            f"| {share['teacher']:.0%} / {share['distil']:.0%} "
            f"| {row['peak_memory_bytes'] / 1e6:.0f} | {row['acc']:.2f} | {row['asr']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/engine_speed"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=["paper", "fast"])
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=10, help="of each stage, for a quick look")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    results = list(rounds(options))
    device = torch.device(options.device)
    peaks = {
        name: max(result["peaks"][name] for result in results) for name in ("float32", "bfloat16")
    }
    rows = []
    for name in (REFERENCE, *options.presets):
        precision = results[0][name].get("precision", "float32")
        rows.append(summarise(name, results, options, peaks[precision]))
    sys.stdout.write(table(rows))
    sys.stdout.write(
        f"\n{options.device}, {options.threads} threads, torch {torch.__version__}, "
        f"n = {len(results)} rounds; peak of a matrix product: "
        + ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items())
        + "\n"
    )
    summary = {
        "rows": rows,
        "peaks": peaks,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "threads": options.threads,
        "rounds": len(results),
        "epochs": options.epochs,
        "images": options.images,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    (options.out / "results.json").write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
