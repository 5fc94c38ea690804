"""`sanitizer jobs`."""

from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.options import Json
from service.cli.terminal import emit, result, say, table

group = typer.Typer(invoke_without_command=True, help="List jobs; `jobs show ID` tells of one.")


@group.callback()
def jobs(
    context: typer.Context,
    status: Annotated[
        str | None,
        typer.Option(help="queued, running, cancelling, succeeded, failed or cancelled."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    if context.invoked_subcommand is not None:
        return
    with connected() as remote:
        page = remote.jobs(status=status, limit=None if everything else limit)
    if as_json:
        emit(page.document)
        return
    from service.cli.answers import JobAnswer
    from service.cli.tables import jobs_table

    if not page.data:
        say("No jobs.")
        return
    table(jobs_table([JobAnswer.read(item) for item in page.data]))
    if page.has_more:
        say("There are more: --limit, or --all.")


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
