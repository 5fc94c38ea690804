"""Child processes that tell of themselves in events, one JSON object a line."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from sanitizer.errors import Fault, InvalidSpec
from sanitizer.events import ErrorEvent, Event, ResultEvent, parse
from service.cli.failures import CommandFailed, UnsupportedInput, WrongUsage
from service.cli.processes import die_with_parent, stop_group, tail
from service.cli.progress import RunView

STOP_SECONDS = 10.0


class RunFailed(CommandFailed):
    """The child failed through no fault of the input, or crashed."""


def show_run(arguments: Sequence[str], log: Path) -> None:
    """Runs `python -P ARGUMENTS`, shows its events, and waits for its end.

    The child leads a group of its own: an interrupt reaches this process, which ends that group.

    Args:
        arguments: The command line after `python`.
        log: What the child writes to standard error.

    Raises:
        WrongUsage: The child says that it was asked for what cannot be.
        UnsupportedInput: It says that the input is at fault.
        RunFailed: It failed otherwise.
    """
    failure: ErrorEvent | None = None
    finished = False  # then another exit code than 0 is the verdict, not a crash
    with (
        log.open("wb") as errors,
        _running(arguments, errors.fileno()) as process,
        RunView() as view,
    ):
        for event in _events(process):
            if isinstance(event, ErrorEvent):
                failure = event
            finished = finished or isinstance(event, ResultEvent)
            view.feed(event.type, event.model_dump(mode="json"), event.at)
        code = process.wait()
    if failure is not None and failure.code == InvalidSpec.code:
        raise WrongUsage(failure.message)
    if failure is not None:
        kind = UnsupportedInput if failure.fault is Fault.INPUT else RunFailed
        raise kind(f"{failure.code}: {failure.message}")
    if code != 0 and not finished:
        raise RunFailed(
            f"The run ended with exit code {code} and did not say why. The end of {log}:\n"
            f"{tail(log)}"
        )


@contextlib.contextmanager
def _running(arguments: Sequence[str], errors: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-P", *arguments],  # imports nothing from the current folder
        stdin=subprocess.PIPE,  # closes with this process: see --exit-with-parent
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        stop_group(process, STOP_SECONDS)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _events(process: subprocess.Popen[bytes]) -> Iterator[Event]:
    assert process.stdout is not None  # PIPE, above
    for line in process.stdout:
        with contextlib.suppress(ValidationError):  # an event of a newer kind: not for this view
            yield parse(line)
