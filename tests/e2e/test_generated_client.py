"""A client generated from the OpenAPI document drives a whole job, with nothing else."""

import importlib
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Service
from tests.sanitizer.builders import write_model, write_npz

PACKAGE = "generated_sanitizer_client"


@pytest.fixture(scope="module")
def generated(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package that openapi-python-client makes of the running service's document."""
    folder = tmp_path_factory.mktemp("client")
    document = folder / "openapi.json"
    document.write_bytes(httpx.get(f"{service.stack.url}/openapi.json").content)
    config = folder / "config.yml"
    config.write_text(f"package_name_override: {PACKAGE}\npost_hooks: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
        + ["--path", str(document), "--config", str(config)]
        + ["--output-path", str(folder / PACKAGE), "--fail-on-warning"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    sys.path.insert(0, str(folder))
    yield importlib.import_module(PACKAGE)
    sys.path.remove(str(folder))


def call(name: str, **arguments: Any) -> Any:
    """Calls an operation of the generated client by its operationId."""
    group, operation = name.split(".")
    module = importlib.import_module(f"{PACKAGE}.api.{group}.{operation}")
    response = module.sync_detailed(**arguments)
    assert response.status_code < 300, response.content
    return response


def test_a_whole_job_with_the_generated_client_alone(
    service: Service, generated: ModuleType, tmp_path: Path
) -> None:
    models = importlib.import_module(f"{PACKAGE}.models")
    types = importlib.import_module(f"{PACKAGE}.types")
    client = generated.AuthenticatedClient(base_url=service.stack.url, token=service.api_key)
    with client:
        drive(client, models, types, tmp_path)


def drive(client: Any, models: ModuleType, types: ModuleType, tmp_path: Path) -> None:
    """Upload, submit, wait, read, download."""

    def file(path: Path) -> Any:
        return types.File(payload=io.BytesIO(path.read_bytes()), file_name=path.name)

    model_path = write_model(tmp_path / "suspect.safetensors")
    body = models.ModelUpload(file=file(model_path), input_size=[8, 8])
    model = call("models.create_model", client=client, body=body).parsed
    data = []
    for start, end in ((0, 160), (200, 400)):
        path = write_npz(tmp_path / f"{start}.npz", start, end)
        body = models.DatasetUpload(file=file(path))
        data.append(call("datasets.create_dataset", client=client, body=body).parsed)

    training = models.Training(
        phases=[models.Phase(epochs=2, learning_rate=0.05)],
        batch_size=32,
        crop_padding=1,
        horizontal_flip=False,
        cutout_size=1,
    )
    request = models.JobCreate(
        model_id=model.id,
        clean_data=models.JobData(dataset_id=data[0].id),
        evaluation_data=models.JobData(dataset_id=data[1].id),
        method=models.ArgdConfig(name="argd", teacher=training, student=training),
        probes=[
            models.PatchProbe(
                kind="patch",
                name="corner",
                target_class=0,
                row=-2,
                column=-2,
                pixels=[[255, 0], [0, 255]],
            )
        ],
    )
    job = call("jobs.create_job", client=client, body=request).parsed
    deadline = time.monotonic() + 180
    while job.finished_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        job = call("jobs.get_job", client=client, job_id=job.id).parsed

    assert job.status == "succeeded", job.error
    assert job.summary.after.probes[0].name == "corner"
    events = call("jobs.list_job_events", client=client, job_id=job.id).parsed
    assert events.data[0].type_ == "status"
    metrics = call("jobs.list_job_metrics", client=client, job_id=job.id).parsed
    assert metrics.data
    report = call("jobs.get_job_report", client=client, job_id=job.id).parsed
    assert report.model.architecture == "wrn-10-1"
    result = call("models.download_model", client=client, model_id=job.result_model_id)
    assert len(result.content) == model_path.stat().st_size
