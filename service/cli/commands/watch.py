"""`sanitizer watch`."""

from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.options import Json, Strict


def watch(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")],
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Show a job until it has ended; the exit code tells how. Ctrl-C leaves the job alone."""
    from service.cli.watching import watch_to_the_end

    with connected() as remote:
        raise typer.Exit(watch_to_the_end(remote, job, strict=strict, as_json=as_json))
