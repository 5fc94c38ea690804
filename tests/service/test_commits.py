"""What a request changes is committed before anything is said or done about it."""

from typing import Any

import httpx
import pytest
from celery import Celery
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.queue import count_messages
from tests.service.jobs.builders import make_dataset, make_job, make_model
from tests.service.problem_documents import code_and_pointers

LISTS = ("/v1/models", "/v1/datasets", "/v1/jobs", "/v1/keys")


def _fail(_session: Session) -> None:
    raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("PATCH", "/v1/models/{model}", {"name": "another"}),
        ("DELETE", "/v1/models/{model}", None),
        ("PATCH", "/v1/datasets/{dataset}", {"name": "another"}),
        ("DELETE", "/v1/datasets/{dataset}", None),
        ("POST", "/v1/jobs", {"name": "another"}),
        ("POST", "/v1/jobs/{waiting}/cancel", None),
        ("POST", "/v1/jobs/{ended}/retry", None),
        ("DELETE", "/v1/jobs/{ended}", None),
        ("POST", "/v1/keys", {"name": "another"}),
        ("DELETE", "/v1/keys/{key}", None),
    ],
)
def test_request_whose_commit_fails_is_told_so_and_has_done_nothing(
    app: FastAPI, client: httpx.Client, verb: str, path: str, body: dict[str, Any] | None
) -> None:
    ended = make_job(client)["id"]
    client.post(f"/v1/jobs/{ended}/cancel")
    ids = {
        "model": make_model(client),
        "dataset": make_dataset(client),
        "waiting": make_job(client)["id"],
        "ended": ended,
        "key": client.post("/v1/keys", json={"name": "one"}).json()["id"],
    }
    if path == "/v1/jobs":
        uses = {"model_id": ids["model"], "clean_data": {"dataset_id": ids["dataset"]}}
        body = {**uses, **(body or {})}
    queue: Celery = app.state.services.queue

    def look() -> Any:
        file = client.get(f"/v1/models/{ids['model']}/file")
        lists = [client.get(each).json() for each in LISTS]
        return lists, file.status_code, count_messages(queue)

    before = look()
    sessions = app.state.services.write_sessions
    event.listen(sessions, "before_commit", _fail)
    answer = client.request(verb, path.format_map(ids), json=body)
    event.remove(sessions, "before_commit", _fail)
    assert code_and_pointers(answer) == (503, "unavailable", [])
    assert look() == before
    assert client.request(verb, path.format_map(ids), json=body).is_success
    assert look() != before
