"""What benchmarks share: their command lines, and runs of `python -m sanitizer run`, each a process
of its own, as a worker starts them."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sanitizer.compute import keep_freed_memory, prepare
from sanitizer.cost.workload import AROUND
from sanitizer.events import Stage
from sanitizer.report.model import Report


def parser_of(document: str | None, work: str) -> argparse.ArgumentParser:
    """A command line that says where things are.

    Args:
        document: Of the program; its first line describes it.
        work: Where it keeps what it made, unless it is told.
    """
    parser = argparse.ArgumentParser(description=(document or "").split("\n", 1)[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, default=Path(work), help="what was made is kept here")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser


def prepare_process() -> None:
    """Sets up a process that computes itself, on one thread."""
    prepare(1)
    keep_freed_memory()


def tell(line: str) -> None:
    """Prints a line for people, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


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
        if stage.stage not in AROUND or stage.stage in (Stage.SEEK, Stage.GO_BACK)
    )
