"""The ARGD authors' own backdoored WRN-16-1 on CIFAR-10, method by method, over seeds.

    python -m benchmarks.published_checkpoint --seeds 3

Each run is a process of its own, `python -m sanitizer run`, exactly as a worker starts it. Prints a
table, writes it as JSON, and goes on where it stopped: a run whose report is there is not repeated.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import run, training_seconds
from sanitizer.report.model import Evaluation, Report

METHODS = ("finetune", "nad", "argd")
PROBE = {
    "kind": "patch",
    "name": "grid",
    "target_class": 0,
    "row": 18,
    "column": 18,
    "pixels": [[255, 128, 255], [128, 255, 128], [255, 128, 128]],
}


def run_method(options: argparse.Namespace, method: str, seed: int) -> Report:
    """The report of one run, made if it is not there."""
    data = options.shared / "data"
    spec = {
        "model": {"path": str(data / "models" / "argd-gridtrigger-wrn-16-1.pth.tar")},
        "clean_data": {
            "path": str(data / "cifar10" / "train.parquet"),
            "images": 2500,
            "seed": seed,
        },
        "evaluation_data": {"path": str(data / "cifar10" / "test.parquet")},
        "method": {"name": method, "preset": "paper"},
        "probes": [PROBE],
        "seed": seed,
        "curve_images": 0,
    }
    return run(spec, options.out / f"{method}-{seed}", threads=options.threads)


def figures(evaluation: Evaluation) -> dict[str, float]:
    """ACC, ASR and RA in per cent."""
    probe = evaluation.probes[0]
    shares = {"acc": evaluation.accuracy, "asr": probe.asr, "ra": probe.ra}
    return {name: 100 * share.value for name, share in shares.items()}


def row(name: str, values: dict[str, float], note: str) -> str:
    """One line of the table."""
    return f"| {name} | {values['acc']:.2f} | {values['asr']:.2f} | {values['ra']:.2f} | {note} |\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/published_checkpoint"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)

    table = "| | ACC % | ASR % | RA % | seconds of training |\n|---|---|---|---|---|\n"
    results: list[dict[str, Any]] = []
    for method in options.methods:
        reports = [run_method(options, method, seed) for seed in range(options.seeds)]
        after = [figures(report.after) for report in reports]
        mean = {name: statistics.mean(values[name] for values in after) for name in after[0]}
        seconds = statistics.mean(training_seconds(report) for report in reports)
        if not results:
            table += row("as it came", figures(reports[0].before), "")
        table += row(f"{method}, {len(after)} seeds", mean, f"{seconds:.0f}")
        results.append(
            {
                "method": method,
                "mean": mean,
                "seeds": after,
                "seconds": seconds,
                "device": reports[0].device,
                "threads": options.threads,
                "versions": reports[0].versions,
            }
        )
    sys.stdout.write(table)
    (options.out / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
