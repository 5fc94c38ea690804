"""`sanitizer download`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.connecting import connected
from service.cli.failures import CommandFailed, Refused, WrongUsage
from service.cli.options import Json
from service.cli.terminal import amount, emit, result, say

if TYPE_CHECKING:
    from service.cli.answers import ArtifactAnswer, ModelAnswer
    from service.cli.downloading import WantedFile
    from service.cli.remote import Remote


def download(
    identifier: Annotated[
        str, typer.Argument(metavar="JOB_OR_MODEL", help="Id of a job, or of a model.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, or a folder that exists; here if left out."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All files of a job, into the folder --output.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    as_json: Json = False,
) -> None:
    """Download the sanitized model of a job, or all its files; prints where they are.

    What was interrupted goes on where it stopped; every file is checked by its SHA-256.
    """
    if everything and not identifier.startswith("job_"):
        raise WrongUsage("--all needs the id of a job, job_...")
    with connected() as remote:
        if everything:
            paths = _all_files(remote, identifier, output or Path(identifier), force)
        else:
            paths = [_one_model(remote, identifier, output, force)]
    if as_json:
        emit({"object": "list", "data": [str(path) for path in paths]})
        return
    for path in paths:
        result(path)


def _one_model(remote: "Remote", identifier: str, output: Path | None, force: bool) -> Path:
    from service.cli.downloading import destination

    wanted = wanted_model(remote, result_of(remote, identifier))
    return fetch(wanted, destination(output, wanted.filename), force=force)


def _all_files(remote: "Remote", job_id: str, folder: Path, force: bool) -> list[Path]:
    from service.cli.downloading import safe_name

    artifacts = remote.artifacts(job_id)
    if not artifacts:
        raise CommandFailed(f"The job {job_id} has left no files (yet).")
    if folder.exists() and not folder.is_dir():
        raise WrongUsage(f"{folder} is no folder.")
    paths = []
    for artifact in artifacts:
        path = folder / safe_name(artifact.name)
        try:
            paths.append(fetch(wanted_artifact(remote, artifact), path, force=force))
        except Refused as refusal:
            if refusal.code != "file_gone":
                raise
            say(f"{artifact.name} was deleted on the server; it is left out.")
    return paths


def result_of(remote: "Remote", identifier: str) -> "ModelAnswer":
    """The model of this id, or the one that the job of this id made.

    Raises:
        CommandFailed: The job has made none.
    """
    if not identifier.startswith("job_"):
        return remote.model(identifier)
    job = remote.job(identifier)
    if job.result_model_id is None and job.status == "succeeded":
        raise CommandFailed(
            f"The model that the job {job.id} made was deleted.",
            hint=f"What it reported is still there: sanitizer download --all {job.id}",
        )
    if job.result_model_id is None:
        raise CommandFailed(
            f"The job {job.id} is {job.status}; it has made no model.",
            hint=None if job.is_over else f"Wait for it: sanitizer watch {job.id}",
        )
    return remote.model(job.result_model_id)


def wanted_model(remote: "Remote", model: "ModelAnswer") -> "WantedFile":
    """The file of a model."""
    from service.cli.downloading import WantedFile

    return WantedFile(
        model.filename,
        model.bytes,
        model.sha256,
        lambda start: remote.model_file(model.id, start, model.sha256),
    )


def wanted_artifact(remote: "Remote", artifact: "ArtifactAnswer") -> "WantedFile":
    """A file of a job."""
    from service.cli.downloading import WantedFile

    return WantedFile(
        artifact.name,
        artifact.bytes,
        artifact.sha256,
        lambda start: remote.artifact_file(artifact, start, artifact.sha256),
    )


def fetch(wanted: "WantedFile", target: Path, *, force: bool = False) -> Path:
    """Downloads a file with a bar."""
    from service.cli import downloading
    from service.cli.progress import bytes_bar

    with bytes_bar(f"Downloading {wanted.filename}", wanted.bytes) as on_bytes:
        path = downloading.download(wanted, target, force=force, on_bytes=on_bytes)
    say(f"{path}: {amount(wanted.bytes)}, SHA-256 {wanted.sha256} verified.")
    return path
