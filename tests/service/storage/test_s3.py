"""S3: its settings, its errors, its signed addresses."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import obstore
import pytest
from pydantic import SecretStr

from service.settings import Settings
from service.storage import (
    AccessRefused,
    BucketMissing,
    CredentialsMissing,
    ObjectMissing,
    ObjectStore,
    StorageError,
    make_store,
)
from service.storage.obstore_store import MAX_PARTS, PART_BYTES, part_bytes
from service.storage.s3 import S3, WrongS3Settings, place_of
from tests.s3 import ACCESS_KEY_ID, BUCKET, SECRET, S3Server

KEY = "models/model_01"
NO_KEYS: dict[str, Any] = {"s3_access_key_id": None, "s3_secret_access_key": None}


@pytest.fixture(autouse=True)
def no_credentials_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gives none: its address for that is a port where nobody listens."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")


def _settings(server: S3Server, **changes: Any) -> Settings:
    return Settings(_env_file=None, **{**server.settings(), **changes})


def _store(server: S3Server, **changes: Any) -> ObjectStore:
    return make_store(_settings(server, **changes))


def _put(store: ObjectStore, tmp_path: Path, content: bytes = b"weights") -> None:
    (tmp_path / "file").write_bytes(content)
    store.put_file(KEY, tmp_path / "file")


def _presigned(store: ObjectStore, key: str = KEY) -> str:
    async def ask() -> str | None:
        return await store.presigned(
            key, disposition='attachment; filename="m.pt"', media_type="application/x-model"
        )

    address = asyncio.run(ask())
    assert address is not None
    return address


# --- Settings ------------------------------------------------------------------------------------


def _place(url: str, endpoint: str | None = None) -> tuple[str, str]:
    place = place_of(Settings(_env_file=None, storage_url=url), endpoint, "s3_endpoint")
    return place.origin, place.path("a/b")


def test_bucket_at_amazon_is_named_in_the_host() -> None:
    assert _place("s3://models/x/y/") == ("https://models.s3.us-east-1.amazonaws.com", "/x/y/a/b")


def test_bucket_with_dots_at_amazon_is_named_in_the_path() -> None:
    assert _place("s3://my.models") == ("https://s3.us-east-1.amazonaws.com", "/my.models/a/b")


@pytest.mark.parametrize(
    ("endpoint", "origin"),
    [
        ("http://Store:9000/", "http://store:9000"),
        ("https://store:443", "https://store"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_bucket_elsewhere_is_named_in_the_path(endpoint: str, origin: str) -> None:
    assert _place("s3://models/x", endpoint) == (origin, "/models/x/a/b")


@pytest.mark.parametrize("url", ["s3://models/x", "s3://my.models", "s3://my.models/x"])
def test_amazons_address_is_the_same_by_obstore_and_by_us(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Settings(
        _env_file=None,
        storage_url=url,
        presigned_seconds=60,
        s3_access_key_id=ACCESS_KEY_ID,
        s3_secret_access_key=SecretStr(SECRET),
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    theirs = ours.model_copy(update=NO_KEYS)
    (one, other) = (_presigned(make_store(settings)) for settings in (ours, theirs))
    assert urlsplit(one)[:3] == urlsplit(other)[:3]


@pytest.mark.parametrize(
    "url", ["s3://", "s3://a", "s3://models//x", "s3://models/../x", "s3://models/?x", "s3://m s/x"]
)
def test_url_without_a_bucket_or_with_an_odd_prefix_is_refused(url: str) -> None:
    with pytest.raises(WrongS3Settings, match="storage_url: expected s3://BUCKET"):
        _place(url)


@pytest.mark.parametrize(
    "endpoint",
    [
        "store:9000",
        "ftp://store",
        "https://",
        "https://store/s3",
        "https://a:b@store",
        "http://x:y",
    ],
)
def test_endpoint_that_is_more_or_less_than_an_origin_is_refused(
    s3_server: S3Server, endpoint: str
) -> None:
    with pytest.raises(
        WrongS3Settings, match="s3_public_endpoint: expected https://HOST"
    ) as caught:
        _store(s3_server, s3_public_endpoint=endpoint)
    assert "a:b" not in str(caught.value)


@pytest.mark.parametrize("missing", ["s3_access_key_id", "s3_secret_access_key"])
def test_half_a_key_is_refused(s3_server: S3Server, missing: str) -> None:
    with pytest.raises(WrongS3Settings, match=missing):
        _store(s3_server, **{missing: None})


def test_key_of_the_settings_counts_whatever_the_environment_says(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "of somebody else")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    _store(s3_server).ping()


def test_machine_gives_the_key_where_the_settings_have_none(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    _store(s3_server, **NO_KEYS).ping()


def test_two_prefixes_of_a_bucket_do_not_see_each_other(
    s3_server: S3Server, tmp_path: Path
) -> None:
    one, other = _store(s3_server), _store(s3_server)
    _put(one, tmp_path)
    assert list(other.list()) == []
    with pytest.raises(ObjectMissing):
        other.fetch(KEY, tmp_path / "target")


def test_list_leaves_out_what_others_put_there(s3_server: S3Server, tmp_path: Path) -> None:
    settings = _settings(s3_server)
    _put(make_store(settings), tmp_path)
    obstore.put(S3(settings).store(), "READ ME.txt", b"hello")
    assert [found.key for found in make_store(settings).list()] == [KEY]


# --- Parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16 << 30, MAX_PARTS * PART_BYTES, 5 << 40, (5 << 40) + 1])
def test_parts_of_any_size_of_file_are_few_enough(size: int) -> None:
    assert part_bytes(size) >= PART_BYTES
    assert -(-size // part_bytes(size)) <= MAX_PARTS


def test_parts_do_not_grow_before_they_must() -> None:
    assert part_bytes(None) == part_bytes(MAX_PARTS * PART_BYTES) == PART_BYTES


# --- Errors --------------------------------------------------------------------------------------


def test_bucket_that_is_not_there_is_named(s3_server: S3Server, tmp_path: Path) -> None:
    store = _store(s3_server, storage_url="s3://elsewhere/x")
    with pytest.raises(BucketMissing, match="no bucket elsewhere"):
        store.ping()
    with pytest.raises(BucketMissing):
        _put(store, tmp_path)
    with pytest.raises(BucketMissing):
        store.fetch(KEY, tmp_path / "target")
    with pytest.raises(BucketMissing):
        list(store.list())


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("s3_access_key_id", "AKIASOMEBODYELSE", "InvalidAccessKeyId"),
        ("s3_secret_access_key", SecretStr("a-wrong-secret"), "SignatureDoesNotMatch"),
    ],
)
def test_credentials_that_are_refused_are_named_and_not_shown(
    s3_server: S3Server, setting: str, value: Any, code: str
) -> None:
    store = _store(s3_server, **{setting: value})
    with pytest.raises(AccessRefused, match=code) as caught:
        store.ping()
    with pytest.raises(AccessRefused):
        list(store.list())
    with pytest.raises(AccessRefused):
        asyncio.run(store.size(KEY))
    assert caught.value.__cause__ is None
    assert "a-wrong-secret" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_credentials_that_are_nowhere_are_named(s3_server: S3Server) -> None:
    with pytest.raises(CredentialsMissing, match="s3_access_key_id"):
        _store(s3_server, **NO_KEYS).ping()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_server_that_says_nothing_fails_a_ping_in_time(
    s3_server: S3Server, silent_port: int
) -> None:
    store = _store(s3_server, s3_endpoint=f"http://127.0.0.1:{silent_port}")
    began = time.monotonic()
    with pytest.raises(StorageError):
        store.ping()
    assert time.monotonic() - began < 3


def test_server_that_is_down_fails_a_ping_at_once(s3_server: S3Server) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match="failed on ping"):
        _store(s3_server, s3_endpoint="http://127.0.0.1:9").ping()
    assert time.monotonic() - began < 3


def test_server_that_is_down_fails_everything_else_within_seconds(s3_server: S3Server) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match=KEY):
        _store(s3_server, s3_endpoint="http://127.0.0.1:9").delete(KEY)
    assert time.monotonic() - began < 20


# --- Signed addresses ----------------------------------------------------------------------------


def test_nobody_gets_an_address_unless_the_operator_says_for_how_long(s3_server: S3Server) -> None:
    store = _store(s3_server)
    assert asyncio.run(store.presigned(KEY, disposition="attachment", media_type="a/b")) is None


def test_folder_has_no_addresses(tmp_path: Path) -> None:
    store = make_store(
        Settings(_env_file=None, storage_url=f"file:{tmp_path}", presigned_seconds=60)
    )
    assert asyncio.run(store.presigned(KEY, disposition="attachment", media_type="a/b")) is None


def test_address_gives_the_file_with_its_name_and_type(s3_server: S3Server, tmp_path: Path) -> None:
    store = _store(s3_server, presigned_seconds=60)
    _put(store, tmp_path)
    answer = httpx.get(_presigned(store), trust_env=False)
    assert answer.content == b"weights"
    assert answer.headers["content-disposition"] == 'attachment; filename="m.pt"'
    assert answer.headers["content-type"] == "application/x-model"


def test_address_of_one_object_is_not_that_of_another(s3_server: S3Server, tmp_path: Path) -> None:
    store = _store(s3_server, presigned_seconds=60)
    _put(store, tmp_path)
    other = _presigned(store, "models/model_02").replace("model_02", "model_01")
    assert httpx.get(other, trust_env=False).status_code == 403


def test_address_is_good_for_as_long_as_the_operator_says(s3_server: S3Server) -> None:
    address = _presigned(_store(s3_server, presigned_seconds=90.4))
    assert parse_qs(urlsplit(address).query)["X-Amz-Expires"] == ["90"]


def test_address_is_at_the_public_endpoint_and_holds_there(
    s3_server: S3Server, tmp_path: Path
) -> None:
    public = s3_server.endpoint.replace("127.0.0.1", "localhost")
    store = _store(s3_server, presigned_seconds=60, s3_public_endpoint=public)
    _put(store, tmp_path)
    address = _presigned(store)
    assert address.startswith(f"{public}/")
    assert httpx.get(address, trust_env=False).content == b"weights"
    inside = address.replace("localhost", "127.0.0.1")
    assert httpx.get(inside, trust_env=False).status_code == 403


def test_machine_role_signs_addresses_without_a_name(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    public = s3_server.endpoint.replace("127.0.0.1", "localhost")
    store = _store(s3_server, presigned_seconds=60, s3_public_endpoint=public, **NO_KEYS)
    _put(store, tmp_path)
    address = _presigned(store)
    assert address.startswith(f"{public}/{BUCKET}/")
    assert httpx.get(address, trust_env=False).content == b"weights"


def test_settings_of_a_store_do_not_ask_the_server(s3_server: S3Server) -> None:
    S3(_settings(s3_server, s3_endpoint="http://127.0.0.1:9"))
