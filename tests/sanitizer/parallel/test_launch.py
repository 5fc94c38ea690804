"""`python -m sanitizer run` with several devices: real processes, real ends."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sanitizer.events import ErrorEvent, Event, MetricEvent, ResultEvent, StageEvent, parse
from sanitizer.pipeline import sanitize
from sanitizer.report.model import Report
from sanitizer.spec import SanitizeSpec
from tests.sanitizer.builders import QUICK_TRAINING, write_model, write_spec

MODEL = "sanitized-suspect.pth"
TRAINING = QUICK_TRAINING | {"phases": [{"epochs": 2, "learning_rate": 1e-4}]}
"""Gentle: in 32 bits a step that a kink of a ReLU lies in makes two runs part, if only the order of
their sums differs. `test_training` has 64 bits and steps of the usual size."""
METHOD = {"name": "argd", "preset": "paper", "teacher": TRAINING, "student": TRAINING}
ENDLESS = {
    "name": "finetune",
    "training": QUICK_TRAINING | {"phases": [{"epochs": 900, "learning_rate": 1e-9}]},
}
GROWING = {
    # A run keeps the memory that it has had; its student's projections take 200 MB more.
    "name": "argd",
    "preset": "paper",
    "teacher": QUICK_TRAINING | {"phases": [{"epochs": 20, "learning_rate": 1e-9}]},
    "student": QUICK_TRAINING,
    "embedding_dim": 4096,
}


@contextmanager
def running(spec: Path, out: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts the command; whatever is left of it in the end is killed, and fails the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sanitizer", "run", str(spec), "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def hear_until(process: "subprocess.Popen[bytes]", wanted: Callable[[Event], bool]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(parse(line)):
            return
    pytest.fail(process.communicate()[1].decode())


def hear_out(process: "subprocess.Popen[bytes]") -> tuple[list[Event], str]:
    output, errors = process.communicate(timeout=60)
    return [parse(line) for line in output.splitlines()], errors.decode()


def trains(event: Event) -> bool:
    """The second epoch of a training stage begins: all processes are in the midst of it."""
    return isinstance(event, MetricEvent) and event.epoch == 1


def members(process: "subprocess.Popen[bytes]") -> list[int]:
    """The processes that the command has started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    commands = {int(p): Path(f"/proc/{p}/cmdline").read_bytes() for p in children.split()}
    return sorted(commands, key=lambda pid: commands[pid].split(b"\0")[-2])


def await_end(pids: list[int]) -> None:
    """Fails where one of them still runs after a while."""
    deadline = time.monotonic() + 10
    left = pids
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists() and not is_zombie(pid)]
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def is_zombie(pid: int) -> bool:
    """Ended, and not yet asked after by who has inherited it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def weights(path: Path) -> Tensor:
    """All that is trained, as one vector."""
    state = torch.load(path, weights_only=True)["state_dict"]
    kept = [v.flatten() for name, v in state.items() if "running" not in name and "num" not in name]
    return torch.cat(kept).double()


def distance(mine: Tensor, other: Tensor) -> float:
    return float((mine - other).norm())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], str, int]:
    """A run that two processes have shared: its folder, events, standard error and exit code."""
    folder = tmp_path_factory.mktemp("shared")
    # In bfloat16 sums in another order part within a few steps.
    precision = {"precision": "float32"}
    spec = write_spec(folder / "in", method=METHOD, devices=2, threads=2, **precision)
    with running(spec, folder / "out") as process:
        events, errors = hear_out(process)
    return folder, events, errors, process.returncode


def test_only_the_leader_speaks_and_the_result_is_last(
    finished: tuple[Path, list[Event], str, int],
) -> None:
    folder, events, errors, code = finished
    assert errors == ""
    stages = [str(event.stage) for event in events if isinstance(event, StageEvent)]
    assert stages == ["load", "screen", "baseline", "teacher", "distil", "evaluate", "write"]
    results = [number for number, e in enumerate(events) if isinstance(e, ResultEvent)]
    assert results == [len(events) - 1]
    report = Report.model_validate_json((folder / "out" / "report.json").read_bytes())
    assert report.devices == 2
    assert code == (1 if report.decision.verdict == "blocked" else 0)
    assert not (folder / "out" / "work" / "processes").exists()


def test_model_and_figures_are_those_of_one_process(
    finished: tuple[Path, list[Event], str, int], tmp_path: Path
) -> None:
    folder, *_ = finished
    spec = SanitizeSpec.model_validate_json((folder / "in" / "spec.json").read_bytes())
    before = torch.get_num_threads()
    try:
        alone = spec.model_copy(update={"devices": 1, "threads": 1})
        expected = sanitize(alone, tmp_path, tmp_path / "work", lambda _: None)
    finally:
        torch.set_num_threads(before)
    report = Report.model_validate_json((folder / "out" / "report.json").read_bytes())
    assert report.after == expected.after
    assert report.before == expected.before
    suspect, theirs, ours = (
        weights(path)
        for path in (folder / "in" / "suspect.pth", tmp_path / MODEL, folder / "out" / MODEL)
    )
    trained = distance(suspect, theirs)
    assert trained > 0.1
    assert distance(theirs, ours) < 0.01 * trained


def test_run_whose_processes_were_killed_ends_in_the_same_bytes(
    finished: tuple[Path, list[Event], str, int], tmp_path: Path
) -> None:
    folder, *_ = finished
    spec = folder / "in" / "spec.json"
    with running(spec, tmp_path) as process:
        hear_until(process, lambda event: trains(event) and event.stage == "distil")  # type: ignore[union-attr]  # a metric
        pids = members(process)
        assert len(pids) == 2
        process.kill()
        process.wait()
        await_end(pids)
    with running(spec, tmp_path) as process:
        events, errors = hear_out(process)
    assert isinstance(events[-1], ResultEvent), errors
    assert json.loads((tmp_path / "report.json").read_bytes())["resumed"] == 1
    assert (tmp_path / MODEL).read_bytes() == (folder / "out" / MODEL).read_bytes()


def test_error_that_all_make_is_told_once(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, devices=2)
    write_model(tmp_path / "suspect.pth", classes=7)
    with running(spec, tmp_path / "out") as process:
        events, _ = hear_out(process)
    errors = [event for event in events if isinstance(event, ErrorEvent)]
    assert [error.code for error in errors] == ["class_mismatch"]
    assert events[-1] is errors[0]
    assert process.returncode == 3


def end_one(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def starve_one(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_DATA, (1 << 20, 1 << 20))


@pytest.mark.parametrize(
    ("harm", "method", "code", "said"),
    [
        (end_one, ENDLESS, "process_lost", "Process 2 of the 2 that shared the run was ended by S"),
        (starve_one, GROWING, "out_of_memory", "The host memory ran out"),
    ],
    ids=["killed", "out of memory"],
)
def test_one_process_that_fails_alone_ends_the_run_and_is_told_of_once(
    tmp_path: Path,
    harm: Callable[[int], None],
    method: dict[str, Any],
    code: str,
    said: str,
) -> None:
    with running(write_spec(tmp_path, method=method, devices=2), tmp_path / "out") as process:
        hear_until(process, trains)
        pids = members(process)
        harm(pids[1])
        events, _ = hear_out(process)
        await_end(pids)
    errors = [event for event in events if isinstance(event, ErrorEvent)]
    assert [error.code for error in errors] == [code]
    assert events[-1] is errors[0]
    assert errors[0].message.startswith(said)
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)],
    ids=["terminate", "interrupt"],
)
def test_every_process_ends_with_the_command(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    spec = write_spec(tmp_path, method=ENDLESS, devices=2)
    with running(spec, tmp_path / "out") as process:
        hear_until(process, trains)
        pids = members(process)
        process.send_signal(number)
        events, _ = hear_out(process)
        await_end(pids)
    assert not [event for event in events if isinstance(event, ErrorEvent)]
    assert process.returncode == code
