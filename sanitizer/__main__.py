"""`python -m sanitizer run SPEC.json --out DIR`: events on standard output, artifacts in a folder.

This is what a worker starts for each job, and what anybody can run with no service anywhere.
Nothing but events, one JSON object a line, goes to standard output; all else to standard error.
"""

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from pydantic import ValidationError

from sanitizer.errors import (
    Fault,
    InternalError,
    InvalidSpec,
    OutOfDisk,
    OutOfMemory,
    SanitizerError,
)
from sanitizer.events import ErrorEvent, Event, to_line
from sanitizer.exits import Exit
from sanitizer.faults import in_words
from sanitizer.parallel.launch import end_with_launcher, launch
from sanitizer.parallel.meeting import Meeting
from sanitizer.report.model import Report, Verdict
from sanitizer.spec import SanitizeSpec


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    # Until here the interpreter started, which is computing alone: its CPU time is its time.
    begun = time.monotonic() - time.process_time()
    parser = _Parser(prog="python -m sanitizer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one specification")
    run.add_argument("spec", type=Path, help="JSON file, see sanitizer.spec.SanitizeSpec")
    run.add_argument("--out", type=Path, required=True, help="folder for model and report")
    run.add_argument(
        "--work",
        type=Path,
        help="folder for decoded images and the checkpoint; run again with the same one to go on "
        "after an interruption (default: OUT/work)",
    )
    run.add_argument(
        "--exit-with-parent",
        action="store_true",
        help="end when standard input closes or the parent dies",
    )
    _add_rank(commands)
    options = parser.parse_args(arguments)
    if options.exit_with_parent:
        _exit_with_parent()
    if options.command != "rank":
        return _execute(options, begun)
    end_with_launcher(options.launcher)
    code = _execute(options, begun)
    # Gloo's threads may hold tensors until the very end, when Python can free none any more: they
    # would abort the process (pytorch/pytorch#179291).
    sys.stderr.flush()
    os._exit(code)


def _execute(options: argparse.Namespace, begun: float) -> int:
    with _event_stream() as stream:

        def emit(event: Event) -> None:
            stream.write(to_line(event))
            stream.flush()

        def fail(event: ErrorEvent) -> int:
            if options.command == "rank":
                Meeting(options.meeting).leave_error(options.number, event)
            else:
                emit(event)
            return Exit.UNSUPPORTED if event.fault is Fault.INPUT else Exit.ERROR

        try:
            with _named_errors():
                spec = read_spec(options.spec)
                # Without it cuBLAS does not promise the same bits twice; it is read when CUDA
                # starts.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                if options.command == "rank":
                    return _run_rank(spec, options, emit, begun)
                work = options.work or options.out / "work"
                if spec.devices == 1:
                    return _run(spec, options.out, work, emit, begun)
                ended = launch(options.spec, options.out, work, spec.devices, stream)
            return fail(ended) if isinstance(ended, ErrorEvent) else ended
        except SanitizerError as error:
            return fail(
                ErrorEvent(
                    code=error.code, fault=error.fault, message=error.message, data=error.data
                )
            )
        except KeyboardInterrupt:
            print(  # noqa: T201  # to a person at a terminal
                "\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr
            )
            return Exit.INTERRUPTED


def _add_rank(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """The command of one process among those that share a run; for `sanitizer.parallel.launch`."""
    rank = commands.add_parser("rank")
    rank.set_defaults(exit_with_parent=False)
    rank.add_argument("spec", type=Path)
    for folder in ("--out", "--work", "--meeting"):
        rank.add_argument(folder, type=Path, required=True)
    for number in ("--number", "--of", "--launcher"):
        rank.add_argument(number, type=int, required=True)


def _run(
    spec: SanitizeSpec, out: Path, work: Path, emit: Callable[[Event], None], begun: float
) -> int:
    # torch takes a second or more to import: a bad specification is told before that.
    from sanitizer.compute import keep_freed_memory
    from sanitizer.pipeline import sanitize

    keep_freed_memory()
    start_seconds = time.monotonic() - begun
    return _exit_code(sanitize(spec, out, work, emit, start_seconds=start_seconds))


def _run_rank(
    spec: SanitizeSpec, options: argparse.Namespace, emit: Callable[[Event], None], begun: float
) -> int:
    from sanitizer.compute import choose_device, keep_freed_memory
    from sanitizer.parallel.group import joined
    from sanitizer.pipeline import sanitize

    keep_freed_memory()
    meeting = Meeting(options.meeting)
    device = choose_device(spec.device, options.number, options.of)
    with joined(meeting.store, options.number, options.of, device) as group:
        start_seconds = time.monotonic() - begun
        report = sanitize(spec, options.out, options.work, emit, group, start_seconds=start_seconds)
        if group.is_leader:
            meeting.leave_code(_exit_code(report))
    return Exit.ALLOWED  # any other code would be a fault to the launcher


def _exit_code(report: Report) -> Exit:
    blocked = report.decision.verdict is Verdict.BLOCKED
    return Exit.BLOCKED if blocked else Exit.ALLOWED


def read_spec(path: Path) -> SanitizeSpec:
    """The specification in a file.

    Raises:
        InvalidSpec: The file is not there, or does not validate; lists every fault with its place.
    """
    try:
        return SanitizeSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidSpec(f"The specification {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        faults = [
            {"field": ".".join(str(part) for part in fault["loc"]), "message": in_words(fault)}
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        listed = "; ".join(
            f"{fault['field'] or 'the file'}: {fault['message']}" for fault in faults
        )
        raise InvalidSpec(
            f"The specification {path} is not valid: {listed}.", errors=faults
        ) from error


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """Turns what the system and torch raise into errors with a code."""
    try:
        yield
    except SanitizerError:
        raise
    except MemoryError as error:
        raise OutOfMemory(_memory_message("host")) from error
    except FileNotFoundError as error:
        raise InvalidSpec(f"A file is not there: {error.filename}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfDisk(
                f"No space is left for {error.filename or 'a file of the run'}. Free some, or give "
                "--out and --work folders on a larger disk."
            ) from error
        raise _internal(error) from error
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(error, torch.OutOfMemoryError):
            raise OutOfMemory(_memory_message("device")) from error
        if "can't allocate memory" in str(error):  # torch's CPU allocator has no class of its own
            raise OutOfMemory(_memory_message("host")) from error
        raise _internal(error) from error
    except Exception as error:
        raise _internal(error) from error


def _memory_message(where: str) -> str:
    return (
        f"The {where} memory ran out. Lower the batch size (method.student.batch_size, "
        "method.teacher.batch_size), or run it where there is more."
    )


def _internal(error: Exception) -> InternalError:
    traceback.print_exception(error)
    return InternalError(
        f"A fault of the software: {type(error).__name__}: {error}. Please report it with the log.",
        type=type(error).__name__,
    )


@contextlib.contextmanager
def _event_stream() -> Iterator[TextIO]:
    """Keeps standard output for events: whatever prints, also in C, lands on standard error."""
    sys.stdout.flush()
    events = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(events), "w", encoding="utf-8") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(events, 1)
        os.close(events)


def _exit_with_parent() -> None:
    """Ends this process when its parent is gone.

    The parent holds the other end of standard input; the kernel closes it however the parent ends.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="exit-with-parent").start()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All files are written and closed: that Python takes down torch's modules one by one would
    # take another second.
    os._exit(code)
