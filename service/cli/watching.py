"""A job on the terminal, from now to its end."""

from sanitizer.exits import Exit
from service.cli.following import exit_of, follow, show_end
from service.cli.progress import RunView
from service.cli.remote import Remote
from service.cli.terminal import emit, say


def watch_to_the_end(remote: Remote, job_id: str, *, as_json: bool, strict: bool = False) -> Exit:
    """Shows a job until it has ended; Ctrl-C stops the showing, not the job."""
    try:
        with RunView() as view:
            job = follow(remote, job_id, view)
    except KeyboardInterrupt:
        say("\nNo longer watching; the job goes on.")
        say(f"  to watch it again:  sanitizer watch {job_id}")
        say(f"  to cancel it:       sanitizer cancel {job_id}")
        return Exit.INTERRUPTED
    if as_json:
        emit(job.document)
    else:
        show_end(job)
    return exit_of(job, strict=strict)
