"""Requests that are wrong in a great many places cost no more than their bytes."""

import json
from collections.abc import Callable, Iterator, Mapping
from time import process_time
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.types import Message

from service.datasets.schemas import DatasetFields, DatasetReferenceCreate
from service.fields import MAX_PAIRS
from service.jobs.schemas import JobCreate
from service.keys.schemas import KeyCreate
from service.models.schemas import ModelFields

MANY = 200_000
SECONDS, BYTES = 5.0, 20_000
PATCH = {"kind": "patch", "target_class": 0, "row": 0, "column": 0}
JOB = {"model_id": "model_1", "clean_data": {"dataset_id": "dataset_1"}}


def of_many_members() -> dict[str, Any]:
    return {str(number): number for number in range(MANY)}


WRONG: Mapping[str, Callable[[], dict[str, Any]]] = {
    "colours": lambda: {"probes": [PATCH | {"pixels": [[[]] * MANY]}]},
    "rows": lambda: {"probes": [PATCH | {"pixels": [[]] * MANY}]},
    "values": lambda: {"probes": [PATCH | {"pixels": [[-1] * MANY]}]},
    "values of colours": lambda: {"probes": [PATCH | {"pixels": [[[-1, -1, -1]] * MANY]}]},
    "probes": lambda: {"probes": [{}] * MANY},
    "shifts": lambda: {
        "probes": [{"kind": "warp", "target_class": 0, "shifts": [[[9e9, 0]] * MANY]}]
    },
    "phases": lambda: {"method": {"name": "argd", "teacher": {"phases": [{}] * MANY}}},
    "pairs": lambda: {"metadata": of_many_members()},
    "members": of_many_members,
    "members of the policy": lambda: {"policy": of_many_members()},
}


@pytest.mark.parametrize("what", WRONG)
def test_as_many_mistakes_as_fit_are_answered_soon_and_in_few_words(
    client: httpx.Client, what: str
) -> None:
    content = json.dumps(JOB | WRONG[what]())
    begun = process_time()
    answer = client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    spent = process_time() - begun
    assert answer.status_code == 422
    assert len(answer.content) < BYTES
    assert 1 <= len(answer.json()["errors"]) <= 100
    assert spent < SECONDS


def test_objects_say_how_many_members_they_may_have(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json=JOB | {str(number): 0 for number in range(101)})
    assert "at most 100 members are expected, got 103" in answer.json()["detail"]
    answer = client.post("/v1/jobs", json=JOB | {"metadata": {str(n): "" for n in range(17)}})
    assert f"at most {MAX_PAIRS} pairs are expected, got 17" in answer.json()["detail"]


@pytest.mark.parametrize(
    "model", [JobCreate, ModelFields, DatasetFields, DatasetReferenceCreate, KeyCreate]
)
def test_every_list_of_a_request_ends_at_its_first_mistake(model: type) -> None:
    lists = [part for part in _parts(TypeAdapter(model).core_schema) if _is_a_list(part)]
    assert all(part.get("fail_fast") for part in lists)
    if model is JobCreate:
        assert len(lists) > 10


def _is_a_list(part: Mapping[str, Any]) -> bool:
    if part.get("type") not in ("list", "tuple", "set", "frozenset", "generator"):
        return False
    # A tuple of a fixed length has no more mistakes than places.
    return part["type"] != "tuple" or "variadic_item_index" in part


def _parts(schema: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, Mapping):
        yield schema
        for value in schema.values():
            yield from _parts(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _parts(value)


async def _ask_without_sending(app: FastAPI, method: str, path: str) -> list[Message]:
    """What a stranger is answered whose body nobody may ask for."""
    answer: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"9000000")],
        "scheme": "http",
        "http_version": "1.1",
        "server": ("test", 80),
        "client": ("test", 1),
        "root_path": "",
    }
    await app(scope, receive, send)
    return answer


def test_body_of_a_stranger_is_not_read_on_any_route_that_needs_a_key(
    app: FastAPI, portal: BlockingPortal
) -> None:
    keyed = [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if "security" in operation
    ]
    assert ("POST", "/v1/jobs") in keyed
    for method, path in keyed:
        head, body = portal.call(_ask_without_sending, app, method, path)
        assert (head["status"], json.loads(body["body"])["code"]) == (401, "unauthenticated")
        headers = dict(head["headers"])
        assert headers[b"www-authenticate"] == b'Bearer realm="sanitizer"'
        assert headers[b"x-request-id"]
