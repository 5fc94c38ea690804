"""How soon a run trains: from the start of its process to its first epoch, and what it imports.

    python -m benchmarks.start_up

The small job: the ARGD authors' WRN-16-1, 2,500 clean images of which a fifth is held out to
measure on, method argd. Each run is a fresh process, ended once its first epoch has begun; the
first one warms the page cache and does not count. Writes JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.published_checkpoint import PROBE

STAGES = ("load", "baseline", "teacher")


def seconds_to_stages(spec: Path, folder: Path) -> dict[str, float]:
    """Seconds from the start of a run's process to the beginning of each stage."""
    begun = time.time()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "sanitizer", "run", str(spec), "--out", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    reached: dict[str, float] = {}
    if child.stdout is None:
        raise RuntimeError("the child has no standard output")
    with child, child.stdout:
        for line in child.stdout:
            event = json.loads(line)
            if event["type"] == "stage":
                reached[event["stage"]] = datetime.fromisoformat(event["at"]).timestamp() - begun
            if "teacher" in reached:
                child.kill()
    if "teacher" not in reached:
        raise SystemExit(f"the run ended before it trained, with exit code {child.returncode}")
    return reached


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts runs, prints the table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/start_up"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)

    options.out.mkdir(parents=True, exist_ok=True)
    data = options.shared / "data"
    spec = {
        "model": {"path": str(data / "models" / "argd-gridtrigger-wrn-16-1.pth.tar")},
        "clean_data": {"path": str(data / "cifar10" / "train.parquet"), "images": 2500},
        "method": {"name": "argd", "preset": "paper"},
        "probes": [PROBE],
        "threads": options.threads,
    }
    path = options.out / "spec.json"
    path.write_text(json.dumps(spec))
    runs = []
    for _ in range(options.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(seconds_to_stages(path, Path(folder)))
    medians = {stage: statistics.median(run[stage] for run in runs[1:]) for stage in STAGES}
    sys.stdout.write("| seconds from the start of the process to | median | least | most |\n")
    sys.stdout.write("|---|---|---|---|\n")
    for stage, median in medians.items():
        values = [run[stage] for run in runs[1:]]
        sys.stdout.write(f"| {stage} | {median:.2f} | {min(values):.2f} | {max(values):.2f} |\n")
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    sys.stdout.write(f"\nn = {options.runs}, {options.threads} threads, {versions}\n")
    (options.out / "results.json").write_text(
        json.dumps({"medians": medians, "runs": runs[1:], "versions": versions}, indent=2)
    )


if __name__ == "__main__":
    main()
