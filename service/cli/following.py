"""A job, followed to its end over a stream of events that may break."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sanitizer import errors
from sanitizer.errors import Fault, SanitizerError
from sanitizer.exits import Exit
from sanitizer.report.model import Verdict
from service.cli.answers import TERMINAL_STATES, Figures, JobAnswer, JobEvent
from service.cli.failures import NoAnswer, Refused, Unreachable
from service.cli.progress import RunView
from service.cli.remote import Remote
from service.cli.sse import EventParser
from service.cli.tables import VERDICT_STYLES, figures_table
from service.cli.terminal import duration, plain, say, stdout, table

POLL_SECONDS = 1.0
GIVE_UP_AFTER_SECONDS = 300.0
"""A server that is silent for this long is given up; the job goes on."""


def follow(
    remote: Remote,
    job_id: str,
    view: RunView,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobAnswer:
    """Shows a job until it has ended; connections that break are made again.

    Of a job that was seen before its end everything is shown, also what came while there was no
    connection. Of one that has ended already nothing is.

    Raises:
        NoAnswer: The server was silent for too long.
        Refused: The server has a problem with the request, such as an unknown job.
    """
    parser = EventParser()
    answered: float | None = None
    tries = 0
    behind = False  # whether events may be there that were not shown
    while True:
        try:
            job = remote.job(job_id)
            answered = clock()
            if job.is_over and not behind:
                return job
            behind = True
            if job.status == "queued":
                view.wait(job.waiting_reason or "in the queue")
                pause(POLL_SECONDS)
                continue
            parser = EventParser(parser.last_id)  # what the last stream left unfinished is void
            with contextlib.closing(remote.events(job_id, parser)) as events:
                for event in events:
                    answered, tries = clock(), 0
                    view.feed(event.type, event.data, _time(event.at))
                    if _is_turn(event):
                        behind = event.data.get("status") not in TERMINAL_STATES
                        break
                else:
                    if job.is_over:
                        return job
                    pause(parser.retry_seconds or POLL_SECONDS)
        except (Unreachable, NoAnswer, Refused) as failure:
            if isinstance(failure, Refused) and failure.status < 500:
                raise
            if answered is None:
                raise  # it was never there
            if clock() - answered > GIVE_UP_AFTER_SECONDS:
                failure.hint = f"The job goes on. Watch it again: sanitizer watch {job_id}"
                raise
            view.wait("the connection to the server broke; trying again")
            pause(min(10.0, 2.0**tries / 2))
            tries += 1


def _is_turn(event: JobEvent) -> bool:
    """Whether the job has ended, or waits again because its machine failed."""
    if event.type != "status" or event.sequence == 1:  # every job begins in the queue
        return False
    return event.data.get("status") in TERMINAL_STATES | {"queued"}


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)


def exit_of(job: JobAnswer, *, strict: bool = False) -> Exit:
    """The exit code that says how a job ended; `strict` as of `exit_of_verdict`."""
    if job.status == "succeeded":
        return exit_of_verdict(job.verdict, strict=strict)
    if job.error is not None and job.error.code in _input_codes():
        return Exit.UNSUPPORTED
    return Exit.ERROR


def exit_of_verdict(verdict: Verdict | None, *, strict: bool = False) -> Exit:
    """The exit code for a verdict.

    Args:
        strict: Whether what is undecided is blocked.
    """
    passes = verdict is Verdict.ALLOWED or (not strict and verdict is not Verdict.BLOCKED)
    return Exit.ALLOWED if passes else Exit.BLOCKED


def show_end(job: JobAnswer) -> None:
    """How a job ended: figures and verdict, or why it failed."""
    if job.summary is not None:
        show_figures(job.summary.before, job.summary.after)
        show_verdict(job.verdict, job.summary.reasons)
        say(f"{job.summary.architecture}, {job.method}, {duration(job.summary.seconds)}.")
    elif job.status == "failed":
        error = job.error
        say(f"The job failed: {error.code}" if error else "The job failed.", style="bold red")
        if error is not None:
            say(error.message)
    elif job.status == "cancelled":
        say("The job was cancelled.", style="yellow")
    else:
        say(f"The job is {job.status}{_why(job)}.")
    if job.result_model_id is not None:
        say(f"The sanitized model: sanitizer download {job.id}")


def show_figures(before: Figures, after: Figures) -> None:
    """The table of a run."""
    table(figures_table(before, after))


def show_verdict(verdict: Verdict | None, reasons: list[str]) -> None:
    """The verdict, and why."""
    if verdict is not None:
        stdout().print(f"Verdict: {verdict}", style=VERDICT_STYLES[verdict])
    for reason in reasons:
        stdout().print(f"  {plain(reason)}", markup=False)


def _why(job: JobAnswer) -> str:
    if job.waiting_reason:
        return f": {job.waiting_reason}"
    return f", {job.stage}, {job.progress:.0%} done" if job.stage else ""


def _input_codes() -> frozenset[str]:
    """The codes of all errors of the library where the input is at fault."""
    found = set()
    waiting: list[type[SanitizerError]] = [errors.SanitizerError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.fault is Fault.INPUT:
            found.add(kind.code)
    return frozenset(found)
