"""Runs of `python -m sanitizer run`, each a process of its own, as a worker starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sanitizer.cost.workload import AROUND
from sanitizer.events import Stage
from sanitizer.report.model import Report


def run(spec: dict[str, Any], folder: Path, *, threads: int) -> Report:
    """The report of a run in a folder, made if it is not there.

    A run that was killed goes on from its last checkpoint.

    Args:
        spec: Without `threads`.
        threads: Of the process, in torch and in the libraries it calls.

    Raises:
        SystemExit: It failed; says where its events are.
    """
    report = folder / "report.json"
    if not report.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps({**spec, "threads": threads}))
        command = [sys.executable, "-P", "-m", "sanitizer", "run", str(folder / "spec.json")]
        with (folder / "events.jsonl").open("w") as events:
            done = subprocess.run(
                command + ["--out", str(folder)],
                stdout=events,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
        if done.returncode not in (0, 1):
            raise SystemExit(f"The run in {folder} failed; see {folder / 'events.jsonl'}")
    return Report.model_validate_json(report.read_bytes())


def training_seconds(report: Report) -> float:
    """Seconds of what the method did, what it looked for before it trained included, without
    loading, measuring and curves."""
    return sum(
        sum(epoch.values["seconds"] for epoch in stage.epochs) if stage.epochs else stage.seconds
        for stage in report.stages
        if stage.stage not in AROUND or stage.stage == Stage.SEEK
    )
