"""Models, data sets and jobs to test with."""

import io
import zipfile
from pathlib import Path
from typing import Any

import httpx

from sanitizer.report.model import ArtifactKind
from service.db.base import new_id
from service.db.session import SessionFactory, transaction
from service.jobs import service as jobs
from service.jobs.service import Claim, StoredArtifact
from service.storage import ObjectStore
from tests.reports import make_report


def make_model(client: httpx.Client, **fields: Any) -> str:
    """Uploads a model of 32 x 32 pixels; its id."""
    data = {"input_size": "32,32", "architecture": "wrn-16-1", **fields}
    answer = client.post("/v1/models", files={"file": ("m.pt", b"weights")}, data=data)
    return str(answer.json()["id"])


def make_dataset(client: httpx.Client) -> str:
    """Uploads a data set; its id."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("0/a.png", b"a")
    answer = client.post("/v1/datasets", files={"file": ("d.zip", buffer.getvalue())})
    return str(answer.json()["id"])


def job_body(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A request for a job over a new model and a new data set."""
    return {
        "model_id": make_model(client),
        "clean_data": {"dataset_id": make_dataset(client)},
        **fields,
    }


def make_job(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Submits a job; the answer."""
    answer = client.post("/v1/jobs", json=job_body(client, **fields))
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    return body


def start_job(sessions: SessionFactory, job_id: str) -> Claim:
    """Does what a worker does first: takes the job."""
    with transaction(sessions) as session:
        claim = jobs.claim(session, job_id, "worker-1", 60)
    assert claim is not None
    return claim


def finish_job(
    sessions: SessionFactory, store: ObjectStore, claim: Claim, folder: Path
) -> dict[str, StoredArtifact]:
    """Does what a worker does last: files to the store, then the job has succeeded.

    Gives the files by name.
    """
    report = make_report()
    contents = {
        "model.pt": (ArtifactKind.MODEL, "application/octet-stream", b"sanitized weights"),
        "report.json": (
            ArtifactKind.REPORT,
            "application/json",
            report.model_dump_json().encode(),
        ),
        "report.html": (ArtifactKind.REPORT_PAGE, "text/html", b"<!doctype html><p>fine"),
    }
    artifacts = {}
    for name, (kind, media_type, content) in contents.items():
        path = folder / name
        path.write_bytes(content)
        artifact_id = new_id("artifact")
        key = f"jobs/{claim.job_id}/{artifact_id}"
        stored = store.put_file(key, path)
        artifacts[name] = StoredArtifact(
            artifact_id, name, kind, media_type, stored.bytes, stored.sha256, key
        )
    with transaction(sessions) as session:
        jobs.succeed(session, claim, report, list(artifacts.values()))
    return artifacts
