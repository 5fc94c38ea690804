"""What a job takes over HTTP beyond `python -m sanitizer run` on the same specification.

    python -m benchmarks.service_overhead --quick

Starts the whole service on this machine, uploads model and data first, then runs pairs: the command
by itself, and the job from its POST to the event that says it has succeeded; every second pair the
other way round. Where the difference goes is read from the job's own times, its events, and the
worker's log. Prints a table and writes JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

from benchmarks.published_checkpoint import PROBE
from sanitizer import demo
from sanitizer.events import ResultEvent, Stage, StageEvent, parse
from sanitizer.spec import SanitizeSpec
from service.cli import founding, sse
from service.cli.embedded import embedded_settings, first_key
from service.cli.stack import Stack
from service.settings import Settings

ALLOWED_SECONDS = 3.0
ALLOWED_SHARE = 0.10
PARTS = {
    "request": "POST to its answer",
    "queued": "queued to claimed",
    "prepared": "claimed to the child's start",
    "started": "child's start to its first event",
    "computed": "first event to `write`",
    "written": "`write` to the end of the process",
    "stored": "end of the process to succeeded",
    "told": "succeeded to the client's knowing it",
}
"""What a job consists of. The command by itself has the three in the middle alone."""


@dataclass(frozen=True)
class Work:
    """What both do.

    Attributes:
        model: File of the suspect, with the options of its upload.
        clean: File of the clean data, and how much of it is used.
        request: What is asked for beside model and data, as the API takes it.
    """

    name: str
    model: tuple[Path, Mapping[str, Any]]
    clean: tuple[Path, Mapping[str, Any]]
    evaluation: tuple[Path, Mapping[str, Any]]
    request: Mapping[str, Any]


@dataclass
class Took:
    """Seconds of one run, and of its parts."""

    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    sha256: str = ""
    """Of the model that came out."""

    @property
    def without_computing(self) -> float:
        """Seconds before the first event and after the last stage has begun."""
        return self.seconds - self.parts["computed"]


def demo_work(folder: Path) -> Work:
    """The job of `make demo`."""
    make = [sys.executable, "-P", "-m", "sanitizer.demo", "make", "--out", str(folder)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    request = {name: value for name, value in demo.JOB.items() if name != "name"}
    return Work(
        "demo",
        (folder / "victim.pth", json.loads((folder / "model.json").read_text())),
        (folder / "clean.zip", {}),
        (folder / "evaluation.zip", {}),
        request,
    )


def cifar_work(shared: Path, *, quick: bool) -> Work:
    """The job of the README; quick: two epochs each, and 2,000 evaluation images."""
    phases = [{"epochs": 2, "learning_rate": 0.01}]
    method: dict[str, Any] = {"name": "argd", "preset": "paper"}
    if quick:
        method |= {"teacher": {"phases": phases}, "student": {"phases": phases}}
    return Work(
        "cifar, quick" if quick else "cifar",
        (shared / "data" / "models" / "argd-gridtrigger-wrn-16-1.pth.tar", {}),
        (shared / "data" / "cifar10" / "train.parquet", {"images": 2500}),
        (shared / "data" / "cifar10" / "test.parquet", {"images": 2000} if quick else {}),
        {"method": method, "probes": [PROBE], "seed": 0},
    )


# --- The command by itself -----------------------------------------------------------------------


def run_command(work: Work, folder: Path, settings: Settings, threads: int) -> Took:
    """`python -m sanitizer run`, with the threads that the worker would give it."""
    folder.mkdir(parents=True)
    model, options = work.model
    spec = SanitizeSpec.model_validate(
        {
            **work.request,
            "model": {**options, "path": model, "filename": model.name},
            "clean_data": {"path": work.clean[0], **work.clean[1]},
            "evaluation_data": {"path": work.evaluation[0], **work.evaluation[1]},
            "device": "cpu",
            "threads": threads,
            "checkpoint_seconds": settings.checkpoint_seconds,
        }
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-P", "-m", "sanitizer", "run", str(folder / "spec.json")]
    given = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    begun = time.monotonic()
    began_at = datetime.now(UTC)
    with (folder / "events.jsonl").open("wb") as events:
        done = subprocess.run([*command, "--out", str(folder)], stdout=events, env=given)
    seconds = time.monotonic() - begun
    if done.returncode not in (0, 1):
        raise SystemExit(f"{work.name} failed; see {folder / 'events.jsonl'}")
    told = [parse(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]
    writes = next(e.at for e in told if isinstance(e, StageEvent) and e.stage is Stage.WRITE)
    ended = told[-1]
    if not isinstance(ended, ResultEvent):
        raise SystemExit(f"{work.name} left no result; see {folder / 'events.jsonl'}")
    started = (told[0].at - began_at).total_seconds()
    computed = (writes - told[0].at).total_seconds()
    return Took(
        seconds,
        {"started": started, "computed": computed, "written": seconds - started - computed},
        next(a.sha256 for a in ended.artifacts if a.kind == "model"),
    )


# --- Over HTTP -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Service:
    """A running service and a way to ask it."""

    http: httpx.Client
    settings: Settings
    log: Path
    """The worker's."""

    def upload(self, kind: str, path: Path, **fields: str) -> str:
        """The id of the uploaded file."""
        with path.open("rb") as file:
            files = {"file": (path.name, file)}
            answer = self.http.post(f"/v1/{kind}", files=files, data=fields)
        return str(answer.raise_for_status().json()["id"])

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events as they come, to its end."""
        headers = {"Accept": "text/event-stream"}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            for event in sse.parse(answer.raise_for_status().iter_raw()):
                yield json.loads(event.data)

    def logged(self, job_id: str) -> dict[str, datetime]:
        """When the worker logged what of a job, by the message; the last time of each."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        entries = [entry for entry in map(json.loads, lines) if entry.get("job_id") == job_id]
        return {entry["event"]: datetime.fromisoformat(entry["timestamp"]) for entry in entries}


@contextmanager
def serving(folder: Path, threads: int) -> Iterator[Service]:
    """The service in processes of its own over an empty folder."""
    settings = embedded_settings(folder, device="cpu", slots=1, threads_per_job=threads)
    founding.upgrade(settings)
    with Stack(settings, folder, port=0) as stack:
        headers = {"Authorization": f"Bearer {first_key(settings)}"}
        with httpx.Client(base_url=stack.url, headers=headers, timeout=60) as http:
            yield Service(http, settings, folder / "logs" / "worker.log")


def upload(service: Service, work: Work) -> dict[str, Any]:
    """Sends model and data; gives the whole request for the job."""
    model, options = work.model
    fields = {
        name: ",".join(map(str, value)) if isinstance(value, Sequence) else str(value)
        for name, value in options.items()
    }
    return {
        **work.request,
        "model_id": service.upload("models", model, **fields),
        "clean_data": {
            "dataset_id": service.upload("datasets", work.clean[0]),
            **work.clean[1],
        },
        "evaluation_data": {
            "dataset_id": service.upload("datasets", work.evaluation[0]),
            **work.evaluation[1],
        },
    }


def run_job(service: Service, request: Mapping[str, Any]) -> Took:
    """The job from its POST to the event that says that it has succeeded."""
    began_at = datetime.now(UTC)
    begun = time.monotonic()
    answer = service.http.post("/v1/jobs", json=dict(request)).raise_for_status().json()
    answered = time.monotonic() - begun
    job_id = answer["id"]
    events = []
    for event in service.events(job_id):
        events.append(event)
        if event["type"] == "status" and event["data"]["status"] == "succeeded":
            break
    seconds = time.monotonic() - begun
    known_at = datetime.now(UTC)
    if events[-1]["data"].get("status") != "succeeded":
        raise SystemExit(f"{job_id} did not succeed: {events[-1]}")
    job = service.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
    artifacts = service.http.get(f"/v1/jobs/{job_id}/artifacts").raise_for_status().json()["data"]
    logged = service.logged(job_id)
    stages = [event for event in events if event["type"] == "stage"]
    times = {
        "request": began_at,
        "queued": datetime.fromisoformat(job["created_at"]),
        "prepared": datetime.fromisoformat(job["started_at"]),
        "started": logged["child started"],
        "computed": datetime.fromisoformat(stages[0]["at"]),
        "written": datetime.fromisoformat(stages[-1]["at"]),
        "stored": logged["child has ended"],
        "told": datetime.fromisoformat(job["finished_at"]),
        "end": known_at,
    }
    parts = {name: (times[after] - times[name]).total_seconds() for name, after in pairwise(times)}
    # The job is made, and may be claimed, before the answer is here.
    parts["request"] = min(parts["request"], answered)
    return Took(seconds, parts, next(a["sha256"] for a in artifacts if a["kind"] == "model"))


# --- Results -------------------------------------------------------------------------------------


def measure(service: Service, work: Work, folder: Path, pairs: int, threads: int) -> dict[str, Any]:
    """The pairs of one piece of work."""
    request = upload(service, work)
    commands: list[Took] = []
    jobs: list[Took] = []
    for number in range(pairs):
        out = folder / f"command-{number}"

        def command(out: Path = out) -> None:
            commands.append(run_command(work, out, service.settings, threads))

        def job() -> None:
            jobs.append(run_job(service, request))

        both: list[Callable[[], None]] = [command, job]
        for one in both if number % 2 == 0 else reversed(both):
            one()
    if {took.sha256 for took in [*commands, *jobs]} != {commands[0].sha256}:
        raise SystemExit(f"{work.name}: not every run gave the same model")
    alone, over_http = median(t.seconds for t in commands), median(t.seconds for t in jobs)
    paired = list(zip(commands, jobs, strict=True))
    difference = median(job.seconds - command.seconds for command, job in paired)
    # The same computing takes now more, now less: by more than all the rest.
    own = median(job.without_computing - command.without_computing for command, job in paired)
    return {
        "name": work.name,
        "pairs": pairs,
        "command_seconds": alone,
        "job_seconds": over_http,
        "difference_seconds": difference,
        "difference_share": difference / alone,
        "own_seconds": own,
        "is_small": difference <= ALLOWED_SECONDS and difference <= ALLOWED_SHARE * alone,
        "sha256": commands[0].sha256,
        "commands": [asdict(took) for took in commands],
        "jobs": [asdict(took) for took in jobs],
    }


def print_result(result: Mapping[str, Any]) -> None:
    """The tables of one piece of work."""
    write = sys.stdout.write
    write(f"\n{result['name']}, n = {result['pairs']}, same SHA-256 of the model every time\n\n")
    write("| | command s | job s |\n|---|---|---|\n")
    for name, what in PARTS.items():
        cells = [
            f"{median(took['parts'][name] for took in result[key]):.2f}"
            if name in result[key][0]["parts"]
            else ""
            for key in ("commands", "jobs")
        ]
        write(f"| {what} | {' | '.join(cells)} |\n")
    write(f"| **whole** | {result['command_seconds']:.2f} | {result['job_seconds']:.2f} |\n")
    for key in ("commands", "jobs"):
        each = ", ".join(f"{took['seconds']:.2f}" for took in result[key])
        write(f"\n{key}: {each}")
    verdict = "within" if result["is_small"] else "NOT within"
    write(
        f"\n\nDifference (median of pairs): {result['difference_seconds']:.2f} s, "
        f"{result['difference_share']:.1%}; {verdict} {ALLOWED_SECONDS:g} s and "
        f"{ALLOWED_SHARE:.0%}. Without the computing: {result['own_seconds']:.2f} s.\n"
    )
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all, prints the tables, writes JSON; 1 if a difference is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("var/service_overhead"))
    parser.add_argument("--work", nargs="+", choices=("demo", "cifar"), default=("demo", "cifar"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="fewer epochs of the CIFAR job")
    options = parser.parse_args(arguments)

    results = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        serving(Path(temporary) / "service", options.threads) as service,
    ):
        folder = Path(temporary)
        for name in options.work:
            work = (
                demo_work(folder / "demo")
                if name == "demo"
                else cifar_work(options.shared.resolve(), quick=options.quick)
            )
            result = measure(service, work, folder / name / "runs", options.pairs, options.threads)
            print_result(result)
            results.append(result)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processors": os.cpu_count(),
        "threads": options.threads,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(
        json.dumps({"machine": machine, "results": results}, indent=2)
    )
    return int(not all(result["is_small"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
