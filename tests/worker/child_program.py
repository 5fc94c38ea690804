"""A child that does as its first argument says: `BEHAVIOUR run SPEC --out DIR --work DIR`.

Real processes for the supervisor to look after; the sanitizer itself has its own tests.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sanitizer.errors import Fault
from sanitizer.events import (
    Artifact,
    ErrorEvent,
    Event,
    MetricEvent,
    ProgressEvent,
    ResultEvent,
    Stage,
    StageEvent,
    to_line,
)
from sanitizer.report.model import ArtifactKind
from sanitizer.spec import SanitizeSpec
from tests.reports import make_report

OUT = Path()
WORK = Path()
SPEC = Path()
BEHAVIOURS: dict[str, Callable[[], None]] = {}


def behaviour(function: Callable[[], None]) -> Callable[[], None]:
    BEHAVIOURS[function.__name__] = function
    return function


def emit(*events: Event) -> None:
    for event in events:
        sys.stdout.write(to_line(event))
    sys.stdout.flush()


def name(path: Path, kind: ArtifactKind) -> Artifact:
    content = path.read_bytes()
    return Artifact(
        name=path.name,
        kind=kind,
        media_type="application/octet-stream",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_result(model: bytes = b"weights") -> list[Artifact]:
    (OUT / "model.pt").write_bytes(model)
    (OUT / "report.json").write_text(make_report().model_dump_json())
    return [
        name(OUT / "model.pt", ArtifactKind.MODEL),
        name(OUT / "report.json", ArtifactKind.REPORT),
    ]


@behaviour
def succeed() -> None:
    spec = SanitizeSpec.model_validate_json(SPEC.read_bytes())
    emit(
        StageEvent(stage=Stage.LOAD, message="loading"),
        ProgressEvent(stage=Stage.LOAD, fraction=0.1),
        StageEvent(stage=Stage.TEACHER, message="teaching"),
        MetricEvent(stage=Stage.TEACHER, epoch=1, values={"loss": 0.5}),
        ProgressEvent(stage=Stage.TEACHER, fraction=0.9),
    )
    emit(ResultEvent(artifacts=write_result(spec.model.path.read_bytes())))


@behaviour
def blame_the_input() -> None:
    emit(ErrorEvent(code="empty_class", fault=Fault.INPUT, message="Class 3 has no image."))
    sys.exit(3)


@behaviour
def blame_the_machine() -> None:
    emit(ErrorEvent(code="out_of_memory", fault=Fault.MACHINE, message="No memory."))
    sys.exit(2)


@behaviour
def crash() -> None:
    sys.stderr.write("Traceback: it broke\n")
    sys.exit(7)


@behaviour
def refuse_without_a_word() -> None:
    sys.exit(3)


@behaviour
def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@behaviour
def wait() -> None:
    emit(StageEvent(stage=Stage.TEACHER, message="waiting"))
    (WORK / "attempts").open("a").write("x")
    time.sleep(600)


@behaviour
def succeed_once_allowed() -> None:
    (WORK / "attempts").open("a").write("x")
    while not (WORK / "go").exists():
        time.sleep(0.05)
    succeed()


@behaviour
def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait()


@behaviour
def wait_then_succeed_when_resumed() -> None:
    """The first attempt is cut short; the second one finds what the first has left."""
    if (WORK / "attempts").exists():
        succeed()
    else:
        wait()


def write_checkpoint(content: bytes) -> None:
    partial = WORK / "checkpoint.partial"
    partial.write_bytes(content)
    partial.replace(WORK / "checkpoint.pt")


@behaviour
def checkpoint_then_succeed_when_resumed() -> None:
    """The first attempt leaves a checkpoint and is cut short; the second one hands it out."""
    if (WORK / "checkpoint.pt").exists():
        emit(ResultEvent(artifacts=write_result((WORK / "checkpoint.pt").read_bytes())))
    else:
        write_checkpoint(b"half way")
        wait()


@behaviour
def checkpoint_twice_then_wait() -> None:
    write_checkpoint(b"a quarter")
    emit(StageEvent(stage=Stage.TEACHER, message="a quarter"))
    time.sleep(1.0)
    write_checkpoint(b"half way")
    wait()


@behaviour
def checkpoint_then_succeed() -> None:
    write_checkpoint(b"nearly done")
    succeed()


@behaviour
def finish_when_asked_to_stop() -> None:
    def finish(*_: object) -> None:
        emit(ResultEvent(artifacts=write_result()))
        os._exit(0)

    signal.signal(signal.SIGTERM, finish)
    wait()


@behaviour
def linger_after_the_result() -> None:
    succeed()
    threading.Event().wait()


@behaviour
def talk_garbage() -> None:
    for line in (b"hello\n", b'{"type": "unheard-of"}\n', b"\xff\xfe\n", b"x" * (3 << 20) + b"\n"):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
    succeed()


@behaviour
def flood() -> None:
    for step in range(12_000):
        sys.stdout.write(to_line(ProgressEvent(stage=Stage.TEACHER, fraction=step / 12_000)))
    for epoch in range(6_000):
        emit(MetricEvent(stage=Stage.DISTIL, epoch=epoch + 1, values={"loss": 1.0}))
    succeed()


@behaviour
def eat_memory() -> None:
    try:
        bytearray(4 << 30)
    except MemoryError:
        emit(ErrorEvent(code="out_of_memory", fault=Fault.MACHINE, message="No memory."))


@behaviour
def eat_disk() -> None:
    try:
        (OUT / "large").write_bytes(bytes(64 << 20))
    except OSError as error:
        emit(ErrorEvent(code="out_of_disk", fault=Fault.MACHINE, message=str(error)))


@behaviour
def leave_a_descendant() -> None:
    """It holds the pipes open and would live on."""
    descendant = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (OUT.parent / "home" / "descendant").write_text(str(descendant.pid))
    succeed()


@behaviour
def show_environment() -> None:
    (OUT / "model.pt").write_text(json.dumps(dict(os.environ)))
    (OUT / "report.json").write_text(make_report().model_dump_json())
    emit(
        ResultEvent(
            artifacts=[
                name(OUT / "model.pt", ArtifactKind.MODEL),
                name(OUT / "report.json", ArtifactKind.REPORT),
            ]
        )
    )


@behaviour
def show_spec() -> None:
    emit(ResultEvent(artifacts=write_result(SPEC.read_bytes())))


@behaviour
def tell_of_an_epoch_that_no_column_holds() -> None:
    emit(MetricEvent(stage=Stage.TEACHER, epoch=1 << 40, values={"loss": 0.5}))
    emit(ResultEvent(artifacts=write_result()))


@behaviour
def name_a_media_type_that_no_column_holds() -> None:
    model, report = write_result()
    emit(ResultEvent(artifacts=[model, report.model_copy(update={"media_type": "a\0b"})]))


@behaviour
def name_other_bytes() -> None:
    files = write_result()
    (OUT / "model.pt").write_bytes(b"changed")
    emit(ResultEvent(artifacts=files))


@behaviour
def name_a_link() -> None:
    files = write_result()
    (OUT / "model.pt").unlink()
    (OUT / "model.pt").symlink_to("/etc/hostname")
    emit(ResultEvent(artifacts=files))


@behaviour
def name_a_pipe() -> None:
    files = write_result()
    (OUT / "report.json").unlink()
    os.mkfifo(OUT / "report.json")
    emit(ResultEvent(artifacts=files))


@behaviour
def name_a_file_twice() -> None:
    files = write_result()
    emit(ResultEvent(artifacts=files + [files[0].model_copy(update={"kind": ArtifactKind.PLOT})]))


@behaviour
def name_a_file_elsewhere() -> None:
    model, report = write_result()
    outside = model.model_copy(update={"name": "../spec.json"})
    emit(ResultEvent(artifacts=[outside, report]))


@behaviour
def name_no_model() -> None:
    emit(ResultEvent(artifacts=write_result()[1:]))


@behaviour
def write_a_bad_report() -> None:
    model, _ = write_result()
    (OUT / "report.json").write_text("{}")
    emit(ResultEvent(artifacts=[model, name(OUT / "report.json", ArtifactKind.REPORT)]))


def end_with_parent() -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=BEHAVIOURS)
    parser.add_argument("run", choices=["run"])
    parser.add_argument("spec", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--exit-with-parent", action="store_true", required=True)
    arguments = parser.parse_args()
    OUT, WORK, SPEC = arguments.out, arguments.work, arguments.spec
    end_with_parent()
    BEHAVIOURS[arguments.behaviour]()
