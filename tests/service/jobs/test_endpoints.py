"""Jobs over HTTP."""

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import event, func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent, Stage
from sanitizer.spec import MAX_GENERATOR_BYTES
from service.db.base import utc_now
from service.db.session import SessionFactory, transaction
from service.db.tables import Artifact, Job, JobEvent, JobMetric, Model, WorkerRecord
from service.jobs import service as jobs
from service.jobs.repository import JobRepository, RequestHead
from service.pagination import encode_cursor
from service.queue import count_messages
from service.settings import Settings
from service.storage import ObjectStore
from tests.builders import make_metric_event, make_progress_event, make_stage_event
from tests.databases import every_database, on_postgresql
from tests.reports import make_report
from tests.service.jobs.builders import (
    finish_job,
    job_body,
    make_dataset,
    make_job,
    make_model,
    start_job,
)
from tests.service.problem_documents import code_and_pointers, problem, read_problem

PATCH = {
    "kind": "patch",
    "name": "corner",
    "target_class": 0,
    "row": -3,
    "column": 29,
    "pixels": [[255, 0, 255], [0, 255, 0], [255, 0, 255]],
}


@pytest.fixture
def store(app: FastAPI) -> ObjectStore:
    """The app's store."""
    store: ObjectStore = app.state.services.store
    return store


@pytest.fixture
def queue(app: FastAPI) -> Celery:
    """The app's way to the broker."""
    return app.state.services.queue


def count_jobs(sessions: SessionFactory) -> int:
    with transaction(sessions) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


# --- Submitting ----------------------------------------------------------------------------------


@every_database
def test_submitted_job_is_answered_with_every_default_and_sent(
    client: httpx.Client, queue: Celery
) -> None:
    model_id, dataset_id = make_model(client), make_dataset(client)
    answer = client.post(
        "/v1/jobs",
        json={
            "model_id": model_id,
            "name": "nightly",
            "metadata": {"team": "vision"},
            "clean_data": {"dataset_id": dataset_id, "images": 2500},
            "probes": [PATCH],
        },
    )
    assert answer.status_code == 202
    body = answer.json()
    path = f"/v1/jobs/{body['id']}"
    rates = [0.00537, 0.0145, 0.0197, 0.0162, 0.0103, 0.00428, 0.000509]
    one_cycle = [{"epochs": 1, "learning_rate": rate} for rate in rates]
    training = {
        "least_epoch_images": 2500,
        "batch_size": 256,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "crop_padding": 4,
        "horizontal_flip": True,
        "cutout_size": 0,
        "fit_augmentation": True,
        "easy_batch_size": 64,
    }
    clean_data = {"dataset_id": dataset_id, "images": 2500, "seed": 0}
    assert body == {
        "object": "job",
        "id": body["id"],
        "name": "nightly",
        "status": "queued",
        "verdict": None,
        "stage": None,
        "progress": 0.0,
        "waiting_reason": "No worker has reported in the last 60 s; the job runs as soon as one "
        "starts.",
        "error": None,
        "summary": None,
        "model_id": model_id,
        "clean_data": clean_data,
        "evaluation_data": None,
        "method": "argd",
        "seed": 0,
        "result_model_id": None,
        "retry_of_id": None,
        "attempt": 0,
        "metadata": {"team": "vision"},
        "created_at": body["created_at"],
        "started_at": None,
        "finished_at": None,
        "updated_at": body["updated_at"],
        "links": {
            "self": path,
            "cancel": f"{path}/cancel",
            "events": f"{path}/events",
            "metrics": f"{path}/metrics",
            "artifacts": f"{path}/artifacts",
            "report": f"{path}/report",
        },
        "request": {
            "model_id": model_id,
            "name": "nightly",
            "metadata": {"team": "vision"},
            "clean_data": clean_data,
            "evaluation_data": None,
            "holdout": 0.2,
            "method": {
                "preset": "default",
                "name": "argd",
                "teacher": {**training, "phases": one_cycle},
                "student": {
                    **training,
                    "phases": [
                        {"epochs": 1, "learning_rate": 0.0085},
                        {"epochs": 1, "learning_rate": 0.0015},
                    ],
                },
                "node_weights": None,
                "node_scale": 0.1,
                "edge_weight": 1.0,
                "embedding_weight": 1.0,
                "embedding_dim": 128,
                "taps": None,
                "projections": "random",
                "student_from": "teacher",
                "hardening": {
                    "rho": 2.0,
                    "ascent_share": 0.25,
                    "least_ascent_images": 32,
                    "perturbation": 0.0,
                    "perturbed_share": 0.375,
                    "perturbed_weight": 0.5,
                    "random_triggers": True,
                    "found_share": 0.5,
                    "trigger_candidates": 4,
                },
                "student_hardening": {
                    "rho": 2.0,
                    "ascent_share": 0.25,
                    "least_ascent_images": 32,
                    "perturbation": 0.0,
                    "perturbed_share": 0.375,
                    "perturbed_weight": 0.5,
                    "random_triggers": True,
                    "found_share": 0.5,
                    "trigger_candidates": 4,
                },
                "label_smoothing": 0.1,
                "classifier_shift": 0.0,
                "back_off": True,
                "suspect_share": 0.4,
                "most_regained": 0.1,
            },
            "probes": [PATCH],
            "policy": {"max_asr": 0.05, "max_accuracy_drop": 0.03, "min_accuracy": 0.0},
            "screen": True,
            "inspect": False,
            "durability": False,
            "seed": 0,
            "device": None,
            "devices": 1,
            "precision": "auto",
        },
    }
    assert answer.headers["location"] == path
    assert sum(count_messages(queue).values()) == 1
    assert client.get(path).json() == body


def test_sent_message_is_noted(client: httpx.Client, sessions: SessionFactory) -> None:
    job = make_job(client)
    with transaction(sessions) as session:
        assert session.get_one(Job, job["id"]).sent_at is not None


class TestDeletion:
    """A tenant forgets a job."""

    @every_database
    def test_all_of_it_goes_and_the_model_stays(
        self,
        client: httpx.Client,
        sessions: SessionFactory,
        store: ObjectStore,
        settings: Settings,
        tmp_path: Path,
    ) -> None:
        job = make_job(client)
        claim = start_job(sessions, job["id"])
        (tmp_path / "worker").mkdir()
        finish_job(sessions, store, claim, tmp_path / "worker")
        model_id = client.get(job["links"]["self"]).json()["result_model_id"]
        folder = Path(settings.storage_url.removeprefix("file:"))
        made = {path for path in folder.rglob("*") if path.is_file() and job["id"] in path.parts}
        assert len(made) == 3

        answer = client.delete(job["links"]["self"])

        assert (answer.status_code, answer.content) == (204, b"")
        for link in ("self", "events", "metrics", "artifacts", "report"):
            assert client.get(job["links"][link]).status_code == 404
        assert client.get("/v1/jobs").json()["data"] == []
        model = client.get(f"/v1/models/{model_id}").json()
        assert model["source_job_id"] is None
        assert client.get(f"/v1/models/{model_id}/file").content == b"sanitized weights"
        assert len([path for path in made if path.exists()]) == 1  # the model's
        with transaction(sessions) as session:
            for table in (Job, JobEvent, JobMetric, Artifact):
                assert session.scalar(select(func.count()).select_from(table)) == 0

    def test_one_that_has_not_ended_stays(
        self, client: httpx.Client, sessions: SessionFactory
    ) -> None:
        job = make_job(client)
        for status in ("queued", "running"):
            answer = client.delete(job["links"]["self"])
            assert answer.status_code == 409
            assert (answer.json()["code"], answer.json()["job_status"]) == ("job_not_ended", status)
            if status == "queued":
                start_job(sessions, job["id"])
        assert client.get(job["links"]["self"]).json()["status"] == "running"

    def test_one_that_is_repeated_may_go(self, client: httpx.Client) -> None:
        job = make_job(client)
        client.post(job["links"]["cancel"])
        again = client.post(f"/v1/jobs/{job['id']}/retry").json()
        assert again["retry_of_id"] == job["id"]
        assert client.delete(job["links"]["self"]).status_code == 204
        assert client.get(again["links"]["self"]).json()["retry_of_id"] is None

    @every_database
    def test_of_two_that_delete_it_at_once_one_does(
        self, client: httpx.Client, sessions: SessionFactory
    ) -> None:
        job = make_job(client)
        client.post(job["links"]["cancel"])
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.delete(job["links"]["self"]), range(4)))
        assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404]
        with transaction(sessions) as session, pytest.raises(jobs.Gone):
            jobs.request_cancel(session, job["id"])

    def test_nobody_elses_can_be_deleted(
        self, client: httpx.Client, stranger: httpx.Client
    ) -> None:
        job = make_job(client)
        client.post(job["links"]["cancel"])
        assert stranger.delete(job["links"]["self"]).status_code == 404
        assert client.get(job["links"]["self"]).status_code == 200


class TestBrokerDown:
    """Nothing listens where the broker should be."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})

    def test_job_is_taken_all_the_same_and_counts_as_unsent(
        self, client: httpx.Client, sessions: SessionFactory
    ) -> None:
        job = make_job(client)
        assert job["status"] == "queued"
        with transaction(sessions) as session:
            assert session.get_one(Job, job["id"]).sent_at is None

    def test_job_is_cancelled_all_the_same(self, client: httpx.Client) -> None:
        job = make_job(client)
        assert client.post(job["links"]["cancel"]).json()["status"] == "cancelled"


@every_database
def test_ids_that_are_not_the_tenants_are_refused_by_pointer(
    client: httpx.Client, stranger: httpx.Client, sessions: SessionFactory
) -> None:
    body = job_body(stranger, evaluation_data={"dataset_id": "dataset_missing"})
    answer = client.post("/v1/jobs", json=body)
    expected = [
        {"pointer": "/model_id", "detail": f"you have no model '{body['model_id']}'"},
        {
            "pointer": "/clean_data/dataset_id",
            "detail": f"you have no data set '{body['clean_data']['dataset_id']}'",
        },
        {
            "pointer": "/evaluation_data/dataset_id",
            "detail": "you have no data set 'dataset_missing'",
        },
    ]
    assert read_problem(answer) == problem(
        "unknown_id",
        404,
        instance="/v1/jobs",
        title="The request names something you do not have",
        detail="; ".join(f"{e['pointer']}: {e['detail']}" for e in expected) + ".",
        errors=expected,
    )
    assert count_jobs(sessions) == 0


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ({"colour": "red"}, ["/colour"]),
        ({"method": {"name": "magic"}}, ["/method"]),
        ({"method": {"name": "argd", "colour": 1}}, ["/method/colour"]),
        ({"method": {"name": "nad", "student": {"phases": []}}}, ["/method/student/phases"]),
        (
            {"method": {"name": "nad", "student": {"phases": [{"learning_rate": 1}]}}},
            ["/method/student/phases/0/epochs"],
        ),
        ({"method": {"name": "argd", "edge_weight": float("inf")}}, ["/method/edge_weight"]),
        ({"holdout": 1}, ["/holdout"]),
        ({"probes": [PATCH, PATCH]}, ["/probes"]),
        ({"probes": [PATCH | {"pixels": [[1, 2], [3]]}]}, ["/probes/0"]),
        ({"probes": [PATCH | {"pixels": [[256]]}]}, ["/probes/0/pixels/0/0"]),
        ({"probes": [{"kind": "glitter"}]}, ["/probes/0"]),
        ({"seed": 2**63}, ["/seed"]),
        ({"metadata": {"a": "b\0"}}, ["/metadata/a"]),
        ({"metadata": {str(i): "" for i in range(17)}}, ["/metadata"]),
        ({"name": ""}, ["/name"]),
        ({"device": "tpu"}, ["/device"]),
        ({"model_id": None}, ["/model_id"]),
        ({"clean_data": {}}, ["/clean_data/dataset_id"]),
    ],
)
def test_wrong_field_is_refused_by_pointer(
    client: httpx.Client, fields: dict[str, Any], pointers: list[str]
) -> None:
    body = {"model_id": "m", "clean_data": {"dataset_id": "d"}} | fields
    answer = client.post(
        "/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    status, code, found = code_and_pointers(answer)
    assert (status, code, list(dict.fromkeys(found))) == (422, "invalid_request", pointers)


def test_missing_field_is_named(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={})
    assert read_problem(answer) == problem(
        "invalid_request",
        422,
        instance="/v1/jobs",
        title="The request does not validate",
        detail="/model_id: Field required (and 1 more, see `errors`).",
        errors=[
            {"pointer": "/model_id", "detail": "Field required"},
            {"pointer": "/clean_data", "detail": "Field required"},
        ],
    )


@pytest.mark.parametrize("body", [b"{", b"[1]", b"", b"\xff", b"[" * 100_000])
def test_body_that_is_no_json_object_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert read_problem(answer)["code"] in ("bad_request", "invalid_request")


def test_patch_outside_the_image_is_refused_with_both_sides(client: httpx.Client) -> None:
    body = job_body(client, probes=[PATCH | {"row": 30, "column": -40}])
    answer = client.post("/v1/jobs", json=body)
    expected = [
        {
            "pointer": "/probes/0/row",
            "detail": "30 puts the patch at 30 to 32; the input has 0 to 31",
        },
        {
            "pointer": "/probes/0/column",
            "detail": "-40 puts the patch at -8 to -6; the input has 0 to 31",
        },
    ]
    assert read_problem(answer) == problem(
        "probe_outside_image",
        422,
        instance="/v1/jobs",
        title="A probe lies outside the image",
        detail="The model's input is 32 x 32 pixels. "
        + "; ".join(f"{e['pointer']}: {e['detail']}" for e in expected)
        + ".",
        errors=expected,
        input_size=[32, 32],
    )


def test_patch_in_the_corner_is_taken(client: httpx.Client) -> None:
    assert make_job(client, probes=[PATCH | {"row": 29, "column": -3}])["status"] == "queued"


def test_picture_of_a_probe_comes_back_as_it_was_sent(client: httpx.Client) -> None:
    probe = {"kind": "image_mask", "name": "x", "target_class": 0, "picture_base64": "iVBORw0KGgo="}
    job = make_job(client, probes=[probe])
    sent = job["request"]["probes"][0]["picture_base64"]
    assert sent.strip() == "iVBORw0KGgo="
    retried = client.get(job["links"]["self"]).json()
    assert retried["request"] == job["request"]


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        ("QUJD" * (MAX_GENERATOR_BYTES // 4 + 1), f"at most {MAX_GENERATOR_BYTES} bytes"),
        ("QUI", "Base64 decoding error"),
        (None, "valid bytes"),
    ],
    ids=["too large", "no base64", "nothing"],
)
def test_generator_of_a_probe_that_cannot_be_one_is_refused_at_once(
    client: httpx.Client, generator: str | None, said: str
) -> None:
    probe = {"kind": "input_aware", "target_class": 0, "generator_base64": generator}
    answer = client.post("/v1/jobs", json=job_body(client, probes=[probe]))
    assert answer.status_code == 422
    (error,) = read_problem(answer)["errors"]
    assert error["pointer"].startswith("/probes/0")
    assert error["pointer"].endswith("/generator_base64")
    assert said in error["detail"]


def test_generator_of_the_largest_size_is_taken(client: httpx.Client) -> None:
    generator = "QUJD" * (MAX_GENERATOR_BYTES // 4)
    probe = {"kind": "input_aware", "target_class": 0, "generator_base64": generator}
    assert make_job(client, probes=[probe])["status"] == "queued"


class TestValidateOnly:
    """Requests that are only checked."""

    def test_checks_are_answered_and_nothing_is_stored(
        self, client: httpx.Client, sessions: SessionFactory, queue: Celery
    ) -> None:
        body = job_body(client, probes=[PATCH], validate_only=True)
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == 200
        found = answer.json()
        assert found["object"] == "job.validation"
        assert found["request"]["holdout"] == 0.2
        assert found["checks"] == [
            {"name": "request", "outcome": "passed", "detail": "Every field is valid."},
            {
                "name": "model",
                "outcome": "deferred",
                "detail": "m.pt is yours; the run reads its weights.",
            },
            {
                "name": "clean_data",
                "outcome": "deferred",
                "detail": "The data set is yours; the run reads its images and compares the "
                "classes.",
            },
            {
                "name": "probes",
                "outcome": "deferred",
                "detail": "Probes: 1. Patches lie within 32 x 32 pixels; the run checks pictures "
                "and target classes.",
            },
            {
                "name": "queue",
                "outcome": "passed",
                "detail": "0 of at most 100 jobs are waiting.",
            },
        ]
        assert count_jobs(sessions) == 0
        assert sum(count_messages(queue).values()) == 0

    def test_wrong_request_gets_the_problem_of_the_real_call(self, client: httpx.Client) -> None:
        body = job_body(client, model_id="model_x", validate_only=True)
        assert client.post("/v1/jobs", json=body).status_code == 404


class TestQueueLimit:
    """One job of a tenant may wait."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_queued_jobs": 1})

    def test_job_over_the_limit_is_refused_for_now(
        self, client: httpx.Client, stranger: httpx.Client
    ) -> None:
        make_job(client)
        answer = client.post("/v1/jobs", json=job_body(client))
        assert answer.headers["retry-after"] == "30"
        assert read_problem(answer) == problem(
            "too_many_jobs",
            429,
            instance="/v1/jobs",
            title="Too many jobs are waiting",
            detail="1 of your jobs are waiting; at most 1 may.",
            limit=1,
            queued=1,
        )
        make_job(stranger)

    def test_jobs_that_wait_no_more_do_not_count(
        self, client: httpx.Client, sessions: SessionFactory
    ) -> None:
        client.post(make_job(client)["links"]["cancel"])
        start_job(sessions, make_job(client)["id"])
        make_job(client)


class TestIdempotency:
    """Submissions with an idempotency key."""

    @every_database
    def test_same_request_is_done_once_and_answered_twice(
        self, client: httpx.Client, sessions: SessionFactory, queue: Celery
    ) -> None:
        body, headers = job_body(client), {"Idempotency-Key": "once"}
        first = client.post("/v1/jobs", json=body, headers=headers)
        second = client.post("/v1/jobs", json=body, headers=headers)
        assert (second.status_code, second.json()) == (202, first.json())
        assert second.headers["location"] == first.headers["location"]
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"
        assert count_jobs(sessions) == 1
        assert sum(count_messages(queue).values()) == 1

    def test_spelled_out_defaults_make_no_difference(
        self, client: httpx.Client, sessions: SessionFactory
    ) -> None:
        body, headers = job_body(client), {"Idempotency-Key": "once"}
        client.post("/v1/jobs", json=body, headers=headers)
        again = client.post("/v1/jobs", json=body | {"holdout": 0.2}, headers=headers)
        assert again.status_code == 202
        assert count_jobs(sessions) == 1

    def test_other_request_with_the_same_key_is_refused(
        self, client: httpx.Client, sessions: SessionFactory
    ) -> None:
        body, headers = job_body(client), {"Idempotency-Key": "once"}
        client.post("/v1/jobs", json=body, headers=headers)
        answer = client.post("/v1/jobs", json=body | {"seed": 1}, headers=headers)
        assert read_problem(answer) == problem(
            "idempotency_key_reused",
            422,
            instance="/v1/jobs",
            title="The idempotency key belongs to another request",
            detail="The idempotency key 'once' came before with another request.",
            errors=[{"pointer": "/header/Idempotency-Key", "detail": "belongs to another request"}],
        )
        assert count_jobs(sessions) == 1

    def test_refused_request_leaves_its_key_free(self, client: httpx.Client) -> None:
        body, headers = job_body(client), {"Idempotency-Key": "once"}
        refused = client.post("/v1/jobs", json=body | {"model_id": "m"}, headers=headers)
        assert refused.status_code == 404
        assert client.post("/v1/jobs", json=body, headers=headers).status_code == 202


# --- Cancelling and retrying ---------------------------------------------------------------------


def test_waiting_job_is_cancelled_at_once(client: httpx.Client) -> None:
    job = make_job(client)
    answer = client.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["waiting_reason"] is None


@every_database
def test_running_job_is_asked_to_stop_once_and_again(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    job = make_job(client)
    start_job(sessions, job["id"])
    for _ in range(2):
        answer = client.post(job["links"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")


def test_ended_job_is_not_cancelled_and_its_status_named(client: httpx.Client) -> None:
    job = make_job(client)
    client.post(job["links"]["cancel"])
    answer = client.post(job["links"]["cancel"])
    assert read_problem(answer) == problem(
        "job_not_cancellable",
        409,
        instance=job["links"]["cancel"],
        title="The job has ended",
        detail=f"The job {job['id']} is cancelled already; only a job that has not ended can be "
        "cancelled.",
        job_status="cancelled",
    )


@every_database
def test_retry_is_a_new_job_with_the_same_request(client: httpx.Client, queue: Celery) -> None:
    job = make_job(client, seed=7, probes=[PATCH], name="first")
    client.post(job["links"]["cancel"])
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    assert answer.status_code == 202
    again = answer.json()
    assert again["id"] != job["id"]
    assert (again["status"], again["retry_of_id"]) == ("queued", job["id"])
    assert again["request"] == job["request"]
    assert answer.headers["location"] == again["links"]["self"]
    assert sum(count_messages(queue).values()) == 2


def test_job_that_has_not_ended_badly_is_not_retried(client: httpx.Client) -> None:
    job = make_job(client)
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    assert read_problem(answer) == problem(
        "job_not_retryable",
        409,
        instance=f"/v1/jobs/{job['id']}/retry",
        title="The job cannot be retried",
        detail=f"The job {job['id']} is queued; only a failed or cancelled job can be retried.",
        job_status="queued",
    )


def test_retry_is_done_once_for_one_key(client: httpx.Client, sessions: SessionFactory) -> None:
    job = make_job(client)
    client.post(job["links"]["cancel"])
    headers = {"Idempotency-Key": "again"}
    first, second = (client.post(f"/v1/jobs/{job['id']}/retry", headers=headers) for _ in range(2))
    assert first.json() == second.json()
    assert count_jobs(sessions) == 2


def test_request_that_is_none_of_todays_is_shown_but_not_retried(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    job = make_job(client)
    client.post(job["links"]["cancel"])
    old = job["request"] | {"colour": "red", "clean_data": {"dataset": "by another name"}}
    with transaction(sessions) as session:
        session.get_one(Job, job["id"]).request = old
    shown = client.get(job["links"]["self"])
    assert (shown.status_code, shown.json()["request"]) == (200, old)
    [listed] = client.get("/v1/jobs").json()["data"]
    assert listed["clean_data"] == shown.json()["clean_data"] == old["clean_data"]
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    assert code_and_pointers(answer) == (409, "request_outdated", [])
    assert "colour: there is no such field; there are " in answer.json()["detail"]


def test_retry_of_a_job_whose_model_is_gone_is_refused(client: httpx.Client) -> None:
    job = make_job(client)
    client.post(job["links"]["cancel"])
    assert client.delete(f"/v1/models/{job['model_id']}").status_code == 204
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    assert code_and_pointers(answer) == (404, "unknown_id", ["/model_id"])
    assert client.get(job["links"]["self"]).json()["model_id"] == job["model_id"]


# --- What a job uses cannot be deleted -----------------------------------------------------------


def test_model_of_an_unfinished_job_is_not_deleted(client: httpx.Client) -> None:
    job = make_job(client)
    answer = client.delete(f"/v1/models/{job['model_id']}")
    assert read_problem(answer) == problem(
        "model_in_use",
        409,
        instance=f"/v1/models/{job['model_id']}",
        title="A job needs this model",
        detail=f"The model {job['model_id']} is used by {job['id']}, which has not ended.",
        job_ids=[job["id"]],
    )
    assert client.delete(f"/v1/models/{make_model(client)}").status_code == 204  # no job's
    client.post(job["links"]["cancel"])
    assert client.delete(f"/v1/models/{job['model_id']}").status_code == 204


def test_data_set_of_an_unfinished_job_is_not_deleted(client: httpx.Client) -> None:
    evaluation = make_dataset(client)
    job = make_job(client, evaluation_data={"dataset_id": evaluation})
    for dataset_id in (evaluation, job["clean_data"]["dataset_id"]):
        answer = client.delete(f"/v1/datasets/{dataset_id}")
        assert code_and_pointers(answer) == (409, "dataset_in_use", [])
        assert answer.json()["job_ids"] == [job["id"]]
    assert client.delete(f"/v1/datasets/{make_dataset(client)}").status_code == 204  # no job's


def test_what_an_unfinished_job_uses_keeps_its_meaning(client: httpx.Client) -> None:
    """Its name may change: no job looks at that."""
    job = make_job(client)
    model, dataset = (
        f"/v1/models/{job['model_id']}",
        f"/v1/datasets/{job['clean_data']['dataset_id']}",
    )
    mean, order = {"mean": [0.5, 0.5, 0.5]}, {"class_names": ["1", "0"]}
    assert code_and_pointers(client.patch(model, json=mean)) == (409, "model_in_use", [])
    assert code_and_pointers(client.patch(dataset, json=order)) == (409, "dataset_in_use", [])
    same = {"name": "other", "input_size": [32, 32]}  # the size is what it was
    assert client.patch(model, json=same).json()["name"] == "other"
    assert client.patch(dataset, json={"name": "other"}).json()["name"] == "other"
    client.post(job["links"]["cancel"])
    assert client.patch(model, json=mean).json()["mean"] == [0.5, 0.5, 0.5]
    assert client.patch(dataset, json=order).json()["class_names"] == ["1", "0"]


def test_a_model_that_an_older_version_took_is_renamed_and_its_job_refused(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    body = job_body(client)
    model = f"/v1/models/{body['model_id']}"
    with transaction(sessions) as session:
        row = session.get_one(Model, body["model_id"])
        row.options = {**row.options, "mean": [123.7, 116.3, 103.5]}
    assert client.patch(model, json={"name": "other"}).json()["name"] == "other"
    answer = client.post("/v1/jobs", json=body)
    assert code_and_pointers(answer) == (422, "invalid_request", ["/model_id"])
    assert "PATCH /v1/models/" in answer.json()["detail"]
    assert client.patch(model, json={"mean": [0.485, 0.456, 0.406]}).status_code == 200
    assert client.post("/v1/jobs", json=body).status_code == 202


# --- Listing -------------------------------------------------------------------------------------


@every_database
def test_list_shows_jobs_newest_first_without_their_requests(client: httpx.Client) -> None:
    first, second, third = (make_job(client) for _ in range(3))
    page = client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == [third["id"], second["id"]]
    third.pop("request")
    # How many are ahead in the queue is asked anew.
    assert page["data"][0] | {"waiting_reason": ""} == third | {"waiting_reason": ""}
    rest = client.get("/v1/jobs", params={"limit": 2, "after": page["next_cursor"]}).json()
    assert [job["id"] for job in rest["data"]] == [first["id"]]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)


@every_database
def test_list_is_filtered(
    client: httpx.Client,
    sessions: SessionFactory,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    queued = make_job(client, metadata={"team": "vision", "run": "1"})
    cancelled = make_job(client, metadata={"team": "speech"})
    client.post(cancelled["links"]["cancel"])
    done = make_job(client)
    finish_job(sessions, store, start_job(sessions, done["id"]), tmp_path)

    def found(**query: Any) -> list[str]:
        answer = client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    assert found(status="queued") == [queued["id"]]
    assert found(status=["queued", "cancelled"]) == [cancelled["id"], queued["id"]]
    assert found(verdict="allowed") == [done["id"]]
    assert found(verdict="blocked") == []
    assert found(model_id=cancelled["model_id"]) == [cancelled["id"]]
    assert found(metadata="team:vision") == [queued["id"]]
    assert found(metadata="team") == [cancelled["id"], queued["id"]]
    assert found(metadata=["team:vision", "run:2"]) == []
    assert found(metadata="team:'; DROP TABLE jobs") == []
    assert found(created_after=done["created_at"], status="queued") == []
    assert found(created_before=queued["created_at"]) == []
    assert found(created_before="0001-01-01T00:00:00+14:00") == []
    assert found(created_after="9999-12-31T23:59:59-12:00") == []
    assert found(created_after="0001-01-01T00:00:00+14:00") == [
        done["id"],
        cancelled["id"],
        queued["id"],
    ]
    assert found(created_after="2020-01-01T00:00:00Z") == [
        done["id"],
        cancelled["id"],
        queued["id"],
    ]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"status": "asleep"}, "/query/status/0"),
        ({"verdict": "x"}, "/query/verdict/0"),
        ({"created_after": "2020-01-01T00:00:00"}, "/query/created_after"),
        ({"metadata": "a\0"}, "/query/metadata/0"),
        ({"after": "%%%"}, "/query/after"),
    ],
)
def test_wrong_filter_is_refused(client: httpx.Client, query: dict[str, str], pointer: str) -> None:
    answer = client.get("/v1/jobs", params=query)
    assert code_and_pointers(answer) == (422, "invalid_request", [pointer])


@on_postgresql
def test_job_that_is_deleted_while_the_list_is_read_is_left_out(
    client: httpx.Client, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, deleted = make_job(client), make_job(client)
    client.post(deleted["links"]["cancel"])
    read = JobRepository.request_heads

    def delete_and_read(
        repository: JobRepository, job_ids: Collection[str]
    ) -> dict[str, RequestHead]:
        with transaction(sessions) as session:
            jobs.delete(session, deleted["id"])
        return read(repository, job_ids)

    monkeypatch.setattr(JobRepository, "request_heads", delete_and_read)
    assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [kept["id"]]


def test_job_with_a_worker_waits_for_its_turn(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    with transaction(sessions) as session:
        session.add(
            WorkerRecord(id="w", hostname="h", device="cpu", slots=1, heartbeat_at=utc_now())
        )
    make_job(client)
    assert make_job(client)["waiting_reason"] == "Other jobs are ahead of it."


# --- What a job tells and leaves -----------------------------------------------------------------


@every_database
def test_finished_job_shows_its_figures_and_its_result(
    client: httpx.Client, sessions: SessionFactory, store: ObjectStore, tmp_path: Path
) -> None:
    job = make_job(client)
    claim = start_job(sessions, job["id"])
    with transaction(sessions) as session:
        jobs.append_events(session, claim, [make_stage_event(), make_progress_event(0.5)])
    running = client.get(job["links"]["self"]).json()
    kept = ("status", "stage", "progress", "attempt", "waiting_reason")
    assert {field: running[field] for field in kept} == {
        "status": "running",
        "stage": "teacher",
        "progress": 0.5,
        "attempt": 1,
        "waiting_reason": None,
    }
    finish_job(sessions, store, claim, tmp_path)
    done = client.get(job["links"]["self"]).json()
    assert (done["status"], done["verdict"], done["progress"]) == ("succeeded", "allowed", 1.0)
    assert done["summary"] == {
        "architecture": "wrn-16-1",
        "before": {"accuracy": 0.9, "probes": [{"name": "trigger", "asr": 0.99, "ra": 0.8}]},
        "after": {"accuracy": 0.9, "probes": [{"name": "trigger", "asr": 0.01, "ra": 0.8}]},
        "reasons": ["asr.trigger 0.01 <= 0.05"],
        "warnings": [{"code": "images_resized", "message": "All were resized."}],
        "seconds": 12.5,
    }
    result = client.get(f"/v1/models/{done['result_model_id']}").json()
    assert result["source_job_id"] == job["id"]
    assert client.get(result["links"]["file"]).content == b"sanitized weights"
    client.delete(result["links"]["self"])
    assert client.get(job["links"]["self"]).json()["result_model_id"] is None


def test_failed_job_says_why_with_status_200(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    job = make_job(client)
    claim = start_job(sessions, job["id"])
    error = ErrorEvent(
        code="class_mismatch", fault=Fault.INPUT, message="10 classes, 2 came.", data={"came": 2}
    )
    with transaction(sessions) as session:
        jobs.fail(session, claim, error)
    answer = client.get(job["links"]["self"])
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]) == (
        "failed",
        {"code": "class_mismatch", "message": "10 classes, 2 came.", "data": {"came": 2}},
    )


@every_database
def test_events_come_in_pages(client: httpx.Client, sessions: SessionFactory) -> None:
    job = make_job(client)
    claim = start_job(sessions, job["id"])
    with transaction(sessions) as session:
        jobs.append_events(session, claim, [make_stage_event()])
    first = client.get(job["links"]["events"], params={"limit": 2}).json()
    assert first["data"] == [
        {
            "object": "job.event",
            "job_id": job["id"],
            "sequence": 1,
            "type": "status",
            "attempt": 0,
            "at": first["data"][0]["at"],
            "data": {"status": "queued"},
        },
        {
            "object": "job.event",
            "job_id": job["id"],
            "sequence": 2,
            "type": "status",
            "attempt": 1,
            "at": first["data"][1]["at"],
            "data": {"status": "running"},
        },
    ]
    assert (first["has_more"], first["next_cursor"]) == (True, "2")
    second = client.get(job["links"]["events"], params={"after": first["next_cursor"]}).json()
    assert [(e["sequence"], e["type"]) for e in second["data"]] == [(3, "stage")]
    assert (second["has_more"], second["next_cursor"]) == (False, None)


@every_database
def test_figures_come_in_pages_in_their_order(
    client: httpx.Client, sessions: SessionFactory
) -> None:
    job = make_job(client)
    claim = start_job(sessions, job["id"])
    events = [
        make_metric_event(1, loss=0.5, accuracy=0.25),
        make_metric_event(None, Stage.EVALUATE, accuracy=0.75),
    ]
    with transaction(sessions) as session:
        jobs.append_events(session, claim, events)
    path = job["links"]["metrics"]
    first = client.get(path, params={"limit": 2}).json()
    rest = client.get(path, params={"limit": 2, "after": first["next_cursor"]}).json()
    found = [
        (m["object"], m["stage"], m["epoch"], m["name"], m["value"])
        for m in first["data"] + rest["data"]
    ]
    assert found == [
        ("job.metric", "teacher", 1, "loss", 0.5),
        ("job.metric", "teacher", 1, "accuracy", 0.25),
        ("job.metric", "evaluate", None, "accuracy", 0.75),
    ]
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)
    named = client.get(path, params={"name": "loss"}).json()
    assert [m["name"] for m in named["data"]] == ["loss"]


@pytest.mark.parametrize(
    "after", ["x", "eA", "LTE", encode_cursor(str(2**63)), encode_cursor("9" * 60)]
)
def test_wrong_cursor_of_figures_is_refused(client: httpx.Client, after: str) -> None:
    job = make_job(client)
    answer = client.get(job["links"]["metrics"], params={"after": after})
    assert code_and_pointers(answer) == (422, "invalid_request", ["/query/after"])


@pytest.fixture
def statements(settings: Settings) -> list[str]:
    """What is sent to the database, as it comes."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(settings.sessions.kw["bind"], "before_cursor_execute", note)
    return sent


@pytest.mark.parametrize("what", ["events", "metrics", "artifacts", "report"])
def test_what_hangs_on_a_job_is_read_without_its_request(
    client: httpx.Client, statements: list[str], what: str
) -> None:
    """Which may hold megabytes of pictures, and clients poll."""
    job_id = make_job(client)["id"]
    statements.clear()
    client.get(f"/v1/jobs/{job_id}/{what}")
    assert any("FROM jobs" in statement for statement in statements)
    assert not any("jobs.request" in statement for statement in statements)


def test_list_takes_as_many_statements_for_many_jobs_as_for_few(
    client: httpx.Client, statements: list[str]
) -> None:
    body = job_body(client)
    counts = []
    for jobs_made in (2, 20):
        for _ in range(jobs_made):
            assert client.post("/v1/jobs", json=body).status_code == 202
        client.get("/v1/jobs")  # from here on the use of the key is not noted again
        statements.clear()
        client.get("/v1/jobs", params={"limit": 100})
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_artifacts_are_listed_and_downloaded(
    client: httpx.Client, sessions: SessionFactory, store: ObjectStore, tmp_path: Path
) -> None:
    job = make_job(client)
    assert client.get(job["links"]["artifacts"]).json()["data"] == []
    finish_job(sessions, store, start_job(sessions, job["id"]), tmp_path)
    listed = client.get(job["links"]["artifacts"]).json()["data"]
    assert {a["name"] for a in listed} == {"model.pt", "report.json", "report.html"}
    model = next(a for a in listed if a["name"] == "model.pt")
    assert model == {
        "object": "artifact",
        "id": model["id"],
        "job_id": job["id"],
        "name": "model.pt",
        "kind": "model",
        "media_type": "application/octet-stream",
        "bytes": 17,
        "sha256": hashlib.sha256(b"sanitized weights").hexdigest(),
        "created_at": model["created_at"],
        "links": {"file": f"/v1/jobs/{job['id']}/artifacts/{model['id']}/file"},
    }
    file = client.get(model["links"]["file"], headers={"Range": "bytes=10-"})
    assert (file.status_code, file.content) == (206, b"weights")
    assert file.headers["content-disposition"] == 'attachment; filename="model.pt"'
    missing = client.get(f"/v1/jobs/{job['id']}/artifacts/artifact_x/file")
    assert code_and_pointers(missing) == (404, "artifact_not_found", [])


def test_report_comes_as_json_or_as_a_page(
    client: httpx.Client, sessions: SessionFactory, store: ObjectStore, tmp_path: Path
) -> None:
    job = make_job(client)
    early = client.get(job["links"]["report"])
    assert read_problem(early) == problem(
        "report_not_found",
        404,
        instance=job["links"]["report"],
        title="There is no report",
        detail=f"The job {job['id']} is queued; a report is there once it has succeeded.",
        job_status="queued",
    )
    finish_job(sessions, store, start_job(sessions, job["id"]), tmp_path)
    report = client.get(job["links"]["report"])
    assert report.headers["content-type"] == "application/json"
    assert report.json() == make_report().model_dump(mode="json")
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = client.get(job["links"]["report"], headers=browser)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == b"<!doctype html><p>fine"
    # It holds what a stranger's model and images made of it: nothing in it may run or be fetched.
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
    )
    assert page.headers["x-content-type-options"] == "nosniff"
    assert (report.headers["vary"], page.headers["vary"]) == ("Accept", "Accept")
    other = client.get(job["links"]["report"], headers={"Accept": "image/png"})
    assert code_and_pointers(other) == (406, "not_acceptable", [])


class _Pieces:
    """Notes the size of each piece of an answer, in bytes."""

    def __init__(self, app: ASGIApp, sizes: list[int]) -> None:
        self._app = app
        self._sizes = sizes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noting(message: Message) -> None:
            self._sizes.append(len(message.get("body", b"")))
            await send(message)

        await self._app(scope, receive, send_noting)


def test_large_report_page_is_answered_in_pieces(
    app: FastAPI,
    client: httpx.Client,
    sessions: SessionFactory,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    sizes: list[int] = []
    app.add_middleware(_Pieces, sizes=sizes)
    job = make_job(client)
    page = finish_job(sessions, store, start_job(sessions, job["id"]), tmp_path)["report.html"]
    content = bytes(range(256)) * (16 << 10)
    (tmp_path / "large.html").write_bytes(content)
    store.delete(page.storage_key)
    store.put_file(page.storage_key, tmp_path / "large.html")
    sizes.clear()
    answer = client.get(job["links"]["report"], headers={"Accept": "text/html"})
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    assert max(sizes) < len(content)


@every_database
def test_strangers_job_is_not_found(client: httpx.Client, stranger: httpx.Client) -> None:
    job = make_job(client)
    base = job["links"]["self"]
    gets = [base, *(f"{base}/{part}" for part in ("events", "metrics", "artifacts", "report"))]
    for path in gets:
        assert code_and_pointers(stranger.get(path)) == (404, "job_not_found", [])
    stream = stranger.get(f"{base}/events", headers={"Accept": "text/event-stream"})
    assert code_and_pointers(stream) == (404, "job_not_found", [])
    for action in ("cancel", "retry"):
        answer = stranger.post(f"{base}/{action}")
        assert code_and_pointers(answer) == (404, "job_not_found", [])
    assert stranger.get("/v1/jobs").json()["data"] == []
    assert client.get(base).json()["status"] == "queued"
