"""Ranges and names of downloads, and those that the store itself gives."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from service.db.session import SessionFactory
from service.downloads import content_disposition, parse_range
from service.errors import RangeNotSatisfiable
from service.settings import Settings
from tests.s3 import SECRET, S3Server
from tests.service.jobs.builders import finish_job, make_job, start_job
from tests.service.problem_documents import code_and_pointers

CONTENT = bytes(range(256)) * 40
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
FILENAME = "m\u00f6del 1.pth"

NUMBER = st.integers(0, 30).map(str) | st.just("")


@given(first=NUMBER, last=NUMBER, size=st.integers(0, 25))
def test_range_is_what_its_definition_says(first: str, last: str, size: int) -> None:
    every = list(range(size))
    if (first and last and int(last) < int(first)) or (not first and not last):
        expected = every  # no range at all: the whole file
    elif first:
        expected = [i for i in every if i >= int(first) and (not last or i <= int(last))]
    else:
        expected = every[-int(last) :] if int(last) else []
    try:
        found = parse_range(f"bytes={first}-{last}", size)
    except RangeNotSatisfiable:
        assert expected == []
    else:
        start, end = found if found is not None else (0, size)
        assert every[start:end] == expected


@pytest.mark.parametrize(
    "header",
    [f"bytes=0-{'9' * 5000}", f"bytes=-{'9' * 5000}", "bytes=\u0660-\u0665"],
    ids=["long last", "long suffix", "other digits"],
)
def test_range_of_numbers_that_no_file_has_is_ignored(header: str) -> None:
    assert parse_range(header, 10) is None


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=50))
def test_name_stands_in_the_header_whatever_it_is(filename: str) -> None:
    header = content_disposition(filename)
    header.encode("ascii")
    assert header.startswith('attachment; filename="')
    assert header.split("; filename*=")[0].count('"') == 2


# --- From the store itself -----------------------------------------------------------------------


@pytest.fixture
def settings(settings: Settings, s3_server: S3Server) -> Settings:
    """Files lie on S3, which gives them itself."""
    assert settings.sessions  # the copy shares them, and they are closed with the first
    return settings.model_copy(update={**s3_server.settings(), "presigned_seconds": 60})


@pytest.fixture
def file(client: httpx.Client) -> str:
    """The path of a model's file."""
    answer = client.post("/v1/models", files={"file": (FILENAME, CONTENT)})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["links"]["file"])


@pytest.fixture
def outside() -> Iterator[httpx.Client]:
    """A client that knows nothing of the API."""
    with httpx.Client(trust_env=False) as client:
        yield client


def test_model_comes_from_the_store_under_its_name(
    client: httpx.Client, outside: httpx.Client, file: str, s3_server: S3Server
) -> None:
    answer = client.get(file)
    assert (answer.status_code, answer.content) == (307, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"].startswith(f"{s3_server.endpoint}/")
    given_ = outside.get(answer.headers["location"])
    assert (given_.status_code, given_.content) == (200, CONTENT)
    assert given_.headers["content-disposition"] == content_disposition(FILENAME)
    assert given_.headers["content-type"] == "application/octet-stream"


def test_artifact_comes_from_the_store_with_its_type(
    app: FastAPI,
    client: httpx.Client,
    outside: httpx.Client,
    sessions: SessionFactory,
    tmp_path: Path,
) -> None:
    job = make_job(client)
    claim = start_job(sessions, job["id"])
    artifact = finish_job(sessions, app.state.services.store, claim, tmp_path)["report.json"]
    answer = client.get(f"/v1/jobs/{job['id']}/artifacts/{artifact.id}/file")
    assert answer.status_code == 307
    given_ = outside.get(answer.headers["location"])
    assert hashlib.sha256(given_.content).hexdigest() == artifact.sha256
    assert given_.headers["content-type"] == "application/json"
    assert given_.headers["content-disposition"] == 'attachment; filename="report.json"'


def test_report_comes_through_the_api(
    app: FastAPI, client: httpx.Client, sessions: SessionFactory, tmp_path: Path
) -> None:
    job = make_job(client)
    finish_job(sessions, app.state.services.store, start_job(sessions, job["id"]), tmp_path)
    answer = client.get(f"/v1/jobs/{job['id']}/report", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.text) == (200, "<!doctype html><p>fine")


def test_file_that_the_client_has_is_not_looked_for_in_the_store(
    client: httpx.Client, file: str
) -> None:
    answer = client.get(file, headers={"If-None-Match": ETAG})
    assert (answer.status_code, answer.content) == (304, b"")


def test_rest_of_a_file_comes_through_the_api_if_it_is_still_the_same(
    client: httpx.Client, file: str
) -> None:
    answer = client.get(file, headers={"Range": "bytes=10000-", "If-Range": ETAG})
    assert (answer.status_code, answer.content) == (206, CONTENT[10000:])


def test_file_that_is_another_by_now_comes_whole(client: httpx.Client, file: str) -> None:
    answer = client.get(file, headers={"Range": "bytes=10000-", "If-Range": '"other"'})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_range_alone_is_for_the_store(
    client: httpx.Client, outside: httpx.Client, file: str
) -> None:
    header = {"Range": "bytes=5-9"}
    answer = client.get(file, headers=header)
    assert answer.status_code == 307
    given_ = outside.get(answer.headers["location"], headers=header)
    assert given_.content == CONTENT[5:10]


def test_range_outside_the_file_is_refused_by_the_api(client: httpx.Client, file: str) -> None:
    answer = client.get(file, headers={"Range": "bytes=99999-"})
    assert answer.status_code == 416


def test_file_that_left_the_store_is_gone(app: FastAPI, client: httpx.Client, file: str) -> None:
    store = app.state.services.store
    for found in store.list():
        store.delete(found.key)
    assert code_and_pointers(client.get(file)) == (410, "file_gone", [])


def test_stranger_gets_no_address(stranger: httpx.Client, file: str) -> None:
    answer = stranger.get(file)
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_secret_of_the_store_is_in_no_address(client: httpx.Client, file: str) -> None:
    assert SECRET not in client.get(file).headers["location"]
    assert urlsplit(client.get(file).headers["location"]).query.count("X-Amz-Signature=") == 1
