"""Who may do what: every operation, with keys that lack a scope and with those of strangers."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.db.session import SessionFactory
from service.db.tables import Scope
from service.storage import ObjectStore
from tests.service.conftest import MakeClient, MakeKey
from tests.service.jobs.builders import finish_job, make_job, start_job
from tests.service.problem_documents import read_problem

INCLUDED = {
    Scope.READ: {"read"},
    Scope.WRITE: {"read", "write"},
    Scope.ADMIN: {"read", "write", "admin"},
}


def _operations(app: FastAPI) -> list[tuple[str, str]]:
    """Verb and path of all that needs a key."""
    return [
        (verb.upper(), path)
        for path, verbs in app.openapi()["paths"].items()
        for verb, operation in verbs.items()
        if "security" in operation
    ]


def _needed(verb: str, path: str) -> str:
    if path.startswith("/v1/keys"):
        return "admin"
    return "read" if verb == "GET" else "write"


@pytest.mark.parametrize("scope", Scope)
def test_every_operation_asks_for_its_scope(
    app: FastAPI, make_client: MakeClient, make_key: MakeKey, scope: Scope
) -> None:
    caller = make_client(make_key("acme", [scope]))
    refused = {}
    for verb, path in _operations(app):
        answer = caller.request(verb, path)
        if answer.status_code == 403:
            refused[verb, path] = read_problem(answer)["needed_scope"]
    assert refused == {
        (verb, path): _needed(verb, path)
        for verb, path in _operations(app)
        if _needed(verb, path) not in INCLUDED[scope]
    }


def test_whatever_a_stranger_does_with_an_id_there_is_no_such_thing(
    app: FastAPI,
    client: httpx.Client,
    stranger: httpx.Client,
    sessions: SessionFactory,
    tmp_path: Path,
) -> None:
    store: ObjectStore = app.state.services.store
    job = make_job(client)
    files = finish_job(sessions, store, start_job(sessions, job["id"]), tmp_path)
    ids = {
        "model_id": job["model_id"],
        "dataset_id": job["clean_data"]["dataset_id"],
        "job_id": job["id"],
        "artifact_id": files["report.json"].id,
        "key_id": client.post("/v1/keys", json={"name": "another"}).json()["id"],
    }
    told = {}
    for verb, path in _operations(app):
        body = {"name": "mine now"} if verb == "PATCH" else None
        if "{" in path:
            answer = stranger.request(verb, path.format_map(ids), json=body)
            told[verb, path] = (answer.status_code, answer.json().get("code", "").split("_")[-1])
        elif verb == "GET":
            seen = stranger.get(path).text
            assert [each for each in ids.values() if each in seen] == []
    assert told == dict.fromkeys(told, (404, "found"))
    assert ("GET", "/v1/jobs/{job_id}/artifacts/{artifact_id}/file") in told

    of_the_owner = [path for verb, path in told if verb == "GET"]
    assert {client.get(path.format_map(ids)).status_code for path in of_the_owner} == {200}
    assert client.get(f"/v1/models/{ids['model_id']}").json()["name"] == "m.pt"
    keys = {key["id"]: key["revoked_at"] for key in client.get("/v1/keys").json()["data"]}
    assert keys[ids["key_id"]] is None
