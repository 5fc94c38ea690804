"""Jobs from their submission to their end, and what happens when a part of the service is away."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from service.cli.founding import make_admin_key
from tests.collector import Collector, ReceivedSpan
from tests.e2e.conftest import Service
from tests.e2e.inputs import ENDLESS, quick_request
from tests.e2e.user import User


@dataclass(frozen=True)
class Finished:
    """A job that succeeded, and the request and the folder it came from."""

    id: str
    request: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def finished(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Shared by the tests that only look at what a job left."""
    folder = tmp_path_factory.mktemp("finished")
    with service.user() as user:
        request = quick_request(user, folder)
        job = user.wait(user.submit(**request))
    assert job["status"] == "succeeded", job
    return Finished(job["id"], request, folder)


def events_of(user: User, job_id: str, last: int = 0) -> list[dict[str, Any]]:
    """Everything a stream says until it ends by itself."""
    events = []
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
    with user.http.stream(
        "GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=120
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data:"):
                events.append(json.loads(line.removeprefix("data:")))
    return events


def test_a_job_runs_to_a_sanitized_model_with_its_evidence(
    user: User, finished: Finished, tmp_path: Path
) -> None:
    job_id = finished.id
    events = events_of(user, job_id)
    job = user.job(job_id)

    assert job["status"] == "succeeded", job
    assert job["progress"] == 1
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    statuses = [event["data"]["status"] for event in events if event["type"] == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    stages = [event["data"]["stage"] for event in events if event["type"] == "stage"]
    assert stages == ["load", "screen", "baseline", "teacher", "distil", "evaluate", "write"]
    assert events_of(user, job_id, last=3) == events[3:]

    metrics = user.http.get(f"/v1/jobs/{job_id}/metrics", params={"limit": 100}).json()["data"]
    named = {(metric["stage"], metric["epoch"], metric["name"]) for metric in metrics}
    assert ("distil", 2, "asr.corner") in named
    assert ("baseline", None, "accuracy") in named

    report = user.http.get(f"/v1/jobs/{job_id}/report").json()
    assert report["model"]["architecture"] == "wrn-10-1"
    page = user.http.get(f"/v1/jobs/{job_id}/report", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    artifacts = user.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    assert {artifact["kind"] for artifact in artifacts} == {
        "model",
        "report",
        "report_page",
        "plot",
    }

    file = user.http.get(f"/v1/models/{job['result_model_id']}/file")
    (tmp_path / "result.pth").write_bytes(file.content)
    before = torch.load(finished.folder / "suspect.pth", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "result.pth", weights_only=True)["state_dict"]
    assert list(after) == list(before)
    assert any(not torch.equal(after[key], before[key]) for key in before)


def test_the_same_job_again_is_expected_to_take_what_it_took(
    user: User, finished: Finished
) -> None:
    answer = user.http.post("/v1/jobs", json={**finished.request, "validate_only": True})
    assert answer.status_code == 200, answer.text
    estimate = answer.json()["estimate"]
    report = user.http.get(f"/v1/jobs/{finished.id}/report").json()
    assert estimate["basis"] == "own_jobs"
    # Found by the run: neither the upload nor the request names it.
    assert estimate["architecture"] == "wrn-10-1"
    assert estimate["clean_images"] == report["clean_data"]["images"]
    assert estimate["evaluation_images"] == report["evaluation_data"]["images"]
    took = report["cost"]["start_seconds"] + report["seconds"]
    assert estimate["seconds_low"] < took < estimate["seconds_high"]
    assert estimate["peak_host_bytes"] == pytest.approx(report["cost"]["peak_host_bytes"], rel=0.3)


def test_one_trace_crosses_the_request_the_worker_and_the_child(
    service: Service, finished: Finished, collector: Collector
) -> None:
    def of_job(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.attributes.get("sanitizer.job.id") == finished.id]

    spans = collector.wait_for(lambda spans: {"job"} <= {span.name for span in of_job(spans)})
    (job,) = (span for span in of_job(spans) if span.name == "job")
    mine = [span for span in spans if span.trace_id == job.trace_id]
    names = {span.span_id: span.name for span in mine}
    stages = ("load", "screen", "baseline", "teacher", "distil", "evaluate", "write")
    assert [
        (span.service, span.name, names.get(span.parent_id))
        for span in sorted(mine, key=lambda span: (span.service, span.begins))
    ] == [
        ("sanitizer-api", "POST /v1/jobs", None),
        ("sanitizer-api", "send sanitizer.jobs", "POST /v1/jobs"),
        ("sanitizer-worker", "job", "POST /v1/jobs"),
        ("sanitizer-worker", "prepare", "job"),
        ("sanitizer-worker", "child", "job"),
        *(("sanitizer-worker", stage, "child") for stage in stages),
        ("sanitizer-worker", "store", "job"),
    ]
    (distil,) = (span for span in mine if span.name == "distil")
    assert distil.attributes["sanitizer.epoch"] == 2

    def lines_of(part: str) -> list[dict[str, Any]]:
        log = (service.stack.home / "logs" / f"{part}.log").read_text().splitlines()
        lines = [json.loads(line) for line in log if line.startswith("{")]
        return [line for line in lines if line.get("job_id") == finished.id]

    (submitted,) = lines_of("api")
    assert submitted["event"] == "job submitted"
    assert submitted["request_id"]
    # The others are of messages that came twice, and changed nothing.
    worked = [line for line in lines_of("worker") if "attempt" in line]
    assert worked
    for line in worked:
        assert line.keys() >= {"tenant_id", "attempt", "worker_id", "span_id"}
    assert {line["trace_id"] for line in (submitted, *worked)} == {job.trace_id}


def test_a_sanitized_model_can_be_sanitized_again(user: User, finished: Finished) -> None:
    result = user.job(finished.id)["result_model_id"]
    again = user.wait(user.submit(**finished.request | {"model_id": result}))
    assert again["status"] == "succeeded", again


def test_data_is_used_where_it_lies(service: Service, user: User, tmp_path: Path) -> None:
    request = quick_request(user, tmp_path)
    (service.references / "clean.npz").write_bytes((tmp_path / "clean.npz").read_bytes())
    answer = user.http.post(
        "/v1/datasets/references",
        json={"uri": (service.references / "clean.npz").as_uri()},
    )
    assert answer.status_code == 201, answer.text
    job = user.wait(user.submit(**request | {"clean_data": {"dataset_id": answer.json()["id"]}}))
    assert job["status"] == "succeeded", job


def test_the_stream_follows_a_job_while_it_runs(user: User, finished: Finished) -> None:
    job_id = user.submit(**finished.request)
    events = events_of(user, job_id)
    assert events[-1]["data"]["status"] == "succeeded"
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))


def test_a_running_job_is_cancelled_once(user: User, tmp_path: Path) -> None:
    job_id = user.submit(**quick_request(user, tmp_path, method=ENDLESS))
    user.wait(job_id, "running")
    first = user.http.post(f"/v1/jobs/{job_id}/cancel")
    assert first.status_code == 202, first.text
    job = user.wait(job_id)
    assert job["status"] == "cancelled"
    again = user.http.post(f"/v1/jobs/{job_id}/cancel")
    assert again.status_code == 409
    assert again.headers["content-type"].startswith("application/problem+json")
    assert "cancelled" in again.json()["detail"]


def test_a_job_submitted_while_no_worker_runs_says_so_and_runs_later(
    service: Service, user: User, tmp_path: Path
) -> None:
    service.stack.stop_part("worker")
    try:
        job_id = user.submit(**quick_request(user, tmp_path))
        job = user.job(job_id)
        assert job["status"] == "queued"
        assert "worker" in job["waiting_reason"].lower()
    finally:
        service.stack.start_part("worker")
    assert user.wait(job_id)["status"] == "succeeded"


def test_a_job_submitted_while_the_broker_is_down_runs_later(
    service: Service, user: User, tmp_path: Path
) -> None:
    request = quick_request(user, tmp_path)
    service.stack.stop_part("broker")
    try:
        begun = time.monotonic()
        job_id = user.submit(**request)
        assert time.monotonic() - begun < 10
        assert user.job(job_id)["status"] == "queued"
    finally:
        service.stack.start_part("broker")
    assert user.wait(job_id)["status"] == "succeeded"


def test_a_killed_child_is_started_again_and_the_job_succeeds(user: User, tmp_path: Path) -> None:
    job_id = user.submit(**quick_request(user, tmp_path))
    user.wait(job_id, "running")
    deadline = time.monotonic() + 30
    while not (children := children_of_job(job_id)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(children[0], signal.SIGKILL)
    job = user.wait(job_id)
    assert job["status"] == "succeeded", job
    assert job["attempt"] == 2


def children_of_job(job_id: str) -> list[int]:
    """Processes whose command line names the job's folder."""
    found = subprocess.run(["pgrep", "-f", f"sanitizer run .*{job_id}"], capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/jobs/{}/events", "/v1/jobs/{}/report"])
def test_somebody_elses_job_is_not_found(service: Service, finished: Finished, path: str) -> None:
    stranger = User(
        service.stack.url, make_admin_key(service.stack.settings, "strangers", "theirs")
    )
    with stranger:
        assert stranger.http.get(path.format(finished.id)).status_code == 404
