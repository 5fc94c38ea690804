"""Uploads out of bodies that come in any pieces."""

import hashlib
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from service.errors import ContentTooLarge, InvalidRequest
from service.models.schemas import ModelFields
from service.multipart import receive, sanitize_filename
from service.settings import Settings
from service.storage import ObjectStore, make_store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return make_store(Settings(_env_file=None, storage_url=f"file:{tmp_path / 'store'}"))


def make_body(content: bytes, name: str) -> bytes:
    """A form with a field on either side of the file."""
    return b"".join(
        [
            b'--xyz\r\nContent-Disposition: form-data; name="name"\r\n\r\n',
            name.encode(),
            b'\r\n--xyz\r\nContent-Disposition: form-data; name="file"; filename="m.pt"\r\n',
            b"Content-Type: application/octet-stream\r\n\r\n",
            content,
            b'\r\n--xyz\r\nContent-Disposition: form-data; name="mean"\r\n\r\n0.5,0.25\r\n',
            b"--xyz--\r\n",
        ]
    )


def make_request(chunks: list[bytes], *, hang_up: bool = False) -> Request:
    """A request whose body comes in these pieces."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    messages.append(
        {"type": "http.disconnect"} if hang_up else {"type": "http.request", "body": b""}
    )

    async def take() -> dict[str, Any]:
        return messages.pop(0)

    headers = [(b"content-type", b"multipart/form-data; boundary=xyz")]
    scope = {"type": "http", "method": "POST", "path": "/v1/models", "headers": headers}
    return Request(scope, take)


@given(
    content=st.binary(min_size=1, max_size=300)
    | st.text("\r\n-xyz", min_size=1, max_size=60).map(str.encode),
    cuts=st.lists(st.integers(1, 400), max_size=12),
)
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_upload_is_the_same_however_its_body_is_cut(
    store: ObjectStore, content: bytes, cuts: list[int]
) -> None:
    if b"\r\n--xyz" in b"\r\n" + content + b"\r\n":
        return  # the boundary itself
    body = make_body(content, "Zoë")
    places = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    chunks = [body[a:b] for a, b in pairwise(places)]

    async def run() -> None:
        async with receive(
            make_request(chunks), store, "a/b", limit=1000, fields=ModelFields
        ) as upload:
            assert upload.stored.sha256 == hashlib.sha256(content).hexdigest()
            assert upload.stored.bytes == len(content)
            assert upload.head == content[:300]
            fields = upload.validated(ModelFields)
            assert (fields.name, fields.mean) == ("Zoë", (0.5, 0.25))
            assert b"".join([chunk async for chunk in store.open("a/b")]) == content

    anyio.run(run)


@pytest.mark.parametrize("place", [10, 150, 250, 330])
def test_nothing_is_left_wherever_the_client_hangs_up(
    store: ObjectStore, tmp_path: Path, place: int
) -> None:
    body = make_body(b"x" * 100, "n")

    async def run() -> None:
        request = make_request([body[:place]], hang_up=True)
        with pytest.raises(ClientDisconnect):
            async with receive(request, store, "a/b", limit=1000, fields=ModelFields):
                raise AssertionError("the upload was taken as whole")

    anyio.run(run)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def make_part(name: str) -> bytes:
    """A part without content."""
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n\r\n'.encode()


def test_unknown_field_is_refused_before_the_rest_has_come(store: ObjectStore) -> None:
    async def run() -> None:
        request = make_request([make_part("nmae") + make_part("name")], hang_up=True)
        with pytest.raises(InvalidRequest) as refused:
            async with receive(request, store, "a/b", limit=1000, fields=ModelFields):
                raise AssertionError("the upload was taken")
        assert [error.pointer for error in refused.value.errors] == ["/nmae"]

    anyio.run(run)


def test_names_of_parts_count_against_the_limit_of_fields(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.multipart.MAX_FIELD_BYTES", 1000)

    async def run() -> None:
        request = make_request([make_part("input_size") * 101], hang_up=True)
        with pytest.raises(ContentTooLarge):
            async with receive(request, store, "a/b", limit=1000, fields=ModelFields):
                raise AssertionError("the upload was taken")

    anyio.run(run)


def test_upload_that_is_kept_outlives_an_error(store: ObjectStore) -> None:
    async def run() -> int:
        request = make_request([make_body(b"content", "n")])
        taken = receive(request, store, "a/b", limit=1000, fields=ModelFields)
        upload = await taken.__aenter__()
        upload.kept = True
        assert not await taken.__aexit__(RuntimeError, RuntimeError("too late"), None)
        return await store.size("a/b")

    assert anyio.run(run) == 7


@given(st.text())
def test_name_of_a_file_is_harmless_whatever_was_given(given: str) -> None:
    name = sanitize_filename(given)
    assert 0 < len(name.encode()) <= 150
    assert not set(name) & set("/\\\0\n\r")
    assert name not in (".", "..")
    assert sanitize_filename(name) == name
    assert not {unicodedata.category(c)[0] for c in set(name) - {" "}} & {"C", "Z"}


def test_every_kind_of_space_in_the_name_of_a_file_becomes_one_plain_space() -> None:
    given = "a\u00a0\u202f b\u3000c\u2028\u2029d\u200be\u202ef.pt"
    assert sanitize_filename(given) == "a b c def.pt"


@pytest.mark.parametrize("suffixes", [".pt", ".pth.tar", ""])
def test_long_name_of_a_file_keeps_its_suffixes_within_the_bytes(suffixes: str) -> None:
    name = sanitize_filename("é" * 200 + suffixes)
    assert name == "é" * ((150 - len(suffixes)) // 2) + suffixes
