"""`sanitizer jobs`."""

from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.options import Everything, Json, Limit
from service.cli.terminal import emit, result, say

group = typer.Typer(invoke_without_command=True, help="List jobs; `jobs show ID` tells of one.")


@group.callback()
def jobs(
    context: typer.Context,
    status: Annotated[
        str | None,
        typer.Option(help="queued, running, cancelling, succeeded, failed or cancelled."),
    ] = None,
    limit: Limit = 20,
    everything: Everything = False,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    if context.invoked_subcommand is not None:
        return
    with connected() as remote:
        page = remote.jobs(status=status, limit=None if everything else limit)
    from service.cli.answers import JobAnswer
    from service.cli.listing import show_list
    from service.cli.tables import jobs_table

    show_list(page, JobAnswer, jobs_table, as_json=as_json, nothing="No jobs.")


@group.command()
def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")],
    as_json: Json = False,
) -> None:
    """Tell of one job."""
    with connected() as remote:
        answer = remote.job(job)
    if as_json:
        emit(answer.document)
        return
    from service.cli.following import show_end

    result(f"{answer.id}  {answer.status}  {answer.method}  {answer.name or ''}".rstrip())
    show_end(answer)


@group.command()
def retry(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="Id of a job that failed or was cancelled.")
    ],
    as_json: Json = False,
) -> None:
    """Submit a job once more; prints the id of the new one."""
    with connected() as remote:
        answer = remote.retry(job)
    if as_json:
        emit(answer.document)
    else:
        result(answer.id)


@group.command()
def delete(job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]) -> None:
    """Remove a job that has ended, with its files; the sanitized model stays."""
    with connected() as remote:
        remote.delete_job(job)
    say(f"The job {job} is deleted.")
