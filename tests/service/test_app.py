"""What holds for every request: problem documents, request ids, limits."""

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import QueuePool, create_engine, text

from service import errors
from service.dependencies import ReadSession
from service.services import Services
from service.settings import Settings
from tests.databases import every_database
from tests.service.problem_documents import code_and_pointers, problem, read_problem
from tests.worker.faulty_store import FaultyStore


def test_whoever_opens_the_address_is_led_to_the_documentation(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    assert "swagger" in anonymous.get("/docs").text


def test_documentation_without_a_network_says_where_else_it_is(anonymous: httpx.Client) -> None:
    page = anonymous.get("/docs").text
    before_scripts = page[page.index('<div id="swagger-ui">') : page.index("</div>")]
    assert '<a href="/openapi.json">the OpenAPI document</a>' in before_scripts
    assert '<html lang="en">' in page
    assert "tiangolo" not in page
    assert anonymous.get("/redoc").status_code == 404  # one page is enough to look after


def test_unknown_path_is_a_problem(client: httpx.Client) -> None:
    assert read_problem(client.get("/v1/nothing")) == problem(
        "not_found",
        404,
        instance="/v1/nothing",
        title="There is nothing here",
        detail="The API has no path /v1/nothing.",
    )


def test_path_is_exact_so_that_no_upload_is_redirected(client: httpx.Client) -> None:
    assert client.get("/v1/models/").status_code == 404


def test_unknown_method_is_a_problem_that_lists_the_known(client: httpx.Client) -> None:
    answer = client.put("/v1/models")
    assert read_problem(answer) == problem(
        "method_not_allowed",
        405,
        instance="/v1/models",
        title="The path has no such method",
        detail="/v1/models has no method PUT.",
    )
    assert answer.headers["allow"] == "GET, POST"
    assert client.post("/v1/jobs/job_1").headers["allow"] == "DELETE, GET"


def test_mistake_of_ours_is_a_problem_that_tells_nothing_of_it(
    app: FastAPI, client: httpx.Client
) -> None:
    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("the password is 1234")

    answer = client.get("/boom")
    assert read_problem(answer) == problem(
        "internal_error",
        500,
        instance="/boom",
        title="The service made a mistake",
        detail="The request failed by a mistake of the service; the operator's log has more.",
    )
    assert "1234" not in answer.text


def test_database_that_does_not_answer_is_a_problem(app: FastAPI, client: httpx.Client) -> None:
    @app.get("/broken")
    def broken(session: ReadSession) -> None:
        session.execute(text("SELECT * FROM no_such_table"))

    answer = client.get("/broken")
    assert code_and_pointers(answer) == (503, "unavailable", [])
    assert answer.headers["retry-after"] == "5"


def test_store_that_does_not_answer_is_a_problem(app: FastAPI, client: httpx.Client) -> None:
    file = client.post("/v1/models", files={"file": ("m.pt", b"weights")}).json()["links"]["file"]
    services: Services = app.state.services
    store = FaultyStore(services.store)
    store.cut()
    app.state.services = replace(services, store=store)
    answer = client.get(file)
    assert code_and_pointers(answer) == (503, "unavailable", [])
    assert answer.json()["detail"] == "The store does not answer."
    assert answer.headers["retry-after"] == "5"


def test_pool_without_a_free_connection_is_a_database_that_does_not_answer(
    app: FastAPI, client: httpx.Client
) -> None:
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )

    @app.get("/crowded")
    def crowded() -> None:
        with engine.connect(), engine.connect():
            pass

    assert code_and_pointers(client.get("/crowded")) == (503, "unavailable", [])
    engine.dispose()


def test_request_id_of_the_client_is_kept(client: httpx.Client) -> None:
    answer = client.get("/v1/nothing", headers={"X-Request-ID": "trace:1-2_3.4"})
    assert answer.headers["x-request-id"] == "trace:1-2_3.4"
    assert answer.json()["request_id"] == "trace:1-2_3.4"


@pytest.mark.parametrize("given", ["", "a b", "x" * 101, '"><script>', "ü"])
def test_harmful_request_id_is_replaced(client: httpx.Client, given: str) -> None:
    answer = client.get("/healthz", headers=[(b"X-Request-ID", given.encode())])
    assert len(answer.headers["x-request-id"]) == 32


def test_request_id_is_in_every_line_of_the_log(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    # The app takes hold of standard error when it is made, so it is made after `capsys`.
    client: httpx.Client = request.getfixturevalue("client")
    client.get("/v1/nothing", headers={"X-Request-ID": "trace-1"})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["request_id"]) for line in lines] == [("request", "trace-1")]
    kept = ("method", "path", "status")
    assert {name: lines[0][name] for name in kept} == {
        "method": "GET",
        "path": "/v1/nothing",
        "status": 404,
    }


class TestBodyLimit:
    """JSON bodies may have a thousand bytes."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_request_bytes": 1000})

    def test_announced_body_over_the_limit_is_refused(self, client: httpx.Client) -> None:
        answer = client.post("/v1/jobs", json={"name": "x" * 1000})
        assert read_problem(answer) == problem(
            "content_too_large",
            413,
            instance="/v1/jobs",
            title="The body is too large",
            detail="At most 1000 bytes are accepted here; 1011 bytes were sent.",
            limit_bytes=1000,
            received_bytes=1011,
        )

    def test_upload_has_its_own_limit(self, client: httpx.Client) -> None:
        answer = client.post("/v1/models", files={"file": ("m.pt", b"x" * 2000)})
        assert answer.status_code == 201


# --- What the type of a problem leads to ---------------------------------------------------------


def test_type_of_a_problem_leads_to_its_explanation(client: httpx.Client) -> None:
    kind = client.get("/v1/models/model_x").json()["type"]
    page = client.get(kind)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert page.text == (
        "There is no such model\n\nHTTP 404, code model_not_found\n\nNone of your models has this "
        "id, or it was deleted. `GET /v1/models` lists yours.\n"
    )


def test_every_kind_of_problem_is_listed_and_explained(anonymous: httpx.Client) -> None:
    listed = anonymous.get("/problems").json()["data"]
    assert [kind["code"] for kind in listed] == sorted(errors.kinds())
    assert {anonymous.get(kind["type"]).status_code for kind in listed} == {200}


def test_unknown_kind_of_problem_is_not_found(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/problems/nothing")
    assert code_and_pointers(answer) == (404, "problem_not_found", [])


def test_codes_of_problems_are_unique() -> None:
    def walk(kind: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from walk(below)

    codes = [kind.code for kind in walk(errors.ServiceError)]
    assert len(codes) == len(set(codes))


@every_database
def test_time_is_rfc_3339_in_utc(client: httpx.Client) -> None:
    made = client.post("/v1/keys", json={"name": "x", "expires_at": "2099-01-01T02:00:00+02:00"})
    assert made.json()["expires_at"] == "2099-01-01T00:00:00.000Z"


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_body_of_another_type_is_named(client: httpx.Client, media_type: str | None) -> None:
    """As `curl -d` sends it, where nobody said otherwise."""
    headers = {"Content-Type": media_type} if media_type else {}
    answer = client.post("/v1/jobs", content=b'{"model_id": "model_1"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert f"not {media_type or 'untyped'}" in answer.json()["detail"]


def test_what_came_is_said_of_a_wrong_value(client: httpx.Client) -> None:
    body = {"model_id": "model_1", "clean_data": {"dataset_id": "dataset_1", "images": 0}}
    (error,) = client.post("/v1/jobs", json=body).json()["errors"]
    assert error["pointer"] == "/clean_data/images"
    assert error["detail"].endswith("greater than or equal to 1, got 0")


def test_misspelt_filter_is_refused_and_the_right_ones_are_named(client: httpx.Client) -> None:
    answer = client.get("/v1/jobs", params={"statuss": "failed"})
    assert code_and_pointers(answer) == (422, "invalid_request", ["/query/statuss"])
    assert "it knows after, " in answer.json()["detail"]
    assert "status" in answer.json()["detail"]
    assert client.get("/v1/jobs", params={"status": "failed", "limit": 1}).status_code == 200
    assert client.get("/v1/attacks?limit=100").status_code == 200
    assert "it knows none" in client.get("/v1/attacks?x=1").json()["detail"]


def test_stranger_is_told_nothing_of_the_query(client: httpx.Client) -> None:
    answer = client.get("/v1/jobs?statuss=failed", headers={"Authorization": "Bearer bds_no"})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "body",
    ['{"model_id": "model_1", "clean_data": {"dataset_id": "d", "images": "\\ud800"}}']
    + ['{"model_id": "\\ud800", "clean_data": {}}', '{"imag\\ud800": 1}'],
)
def test_half_a_character_is_a_mistake_like_any_other(client: httpx.Client, body: str) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"name": "\xff"}', "The body is no UTF-8: byte 10 of it is 0xff."),
        (
            b"[" * 100_000,
            "The body has lists or objects within each other, deeper than can be read.",
        ),
    ],
    ids=["no-utf8", "too-deep"],
)
def test_body_that_cannot_be_read_is_a_problem_that_says_why(
    client: httpx.Client, body: bytes, detail: str
) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, read_problem(answer)["detail"]) == (400, detail)
