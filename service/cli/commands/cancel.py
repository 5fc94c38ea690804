"""`sanitizer cancel`."""

from typing import Annotated

import typer

from service.cli.connecting import connected
from service.cli.options import Json
from service.cli.terminal import emit, say


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")],
    as_json: Json = False,
) -> None:
    """Cancel a job that waits or runs."""
    with connected() as remote:
        answer = remote.cancel(job)
    if as_json:
        emit(answer.document)
    else:
        say(f"The job {answer.id} is {answer.status}.")
