"""Signatures against Amazon's own example, another implementation and a server that checks them."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import obstore
import pytest
from obstore.store import S3Store

from service.storage.signing import SigningKey, presign_get
from tests.s3 import ACCESS_KEY_ID, BUCKET, REGION, SECRET, S3Server

KEY = SigningKey(ACCESS_KEY_ID, SECRET.encode(), REGION)


def test_signature_is_that_of_amazons_example() -> None:
    # "Authenticating Requests: Using Query Parameters" in the Amazon S3 API Reference.
    address = presign_get(
        "https://examplebucket.s3.amazonaws.com",
        "/test.txt",
        {},
        key=SigningKey(
            "AKIAIOSFODNN7EXAMPLE", b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1"
        ),
        at=datetime(2013, 5, 24, tzinfo=UTC),
        seconds=86_400,
    )
    assert address == (
        "https://examplebucket.s3.amazonaws.com/test.txt"
        "?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@pytest.mark.parametrize("key", ["models/model_01", "a b+c/~d=e&f", "\u00e9/$@:,;!*'()"])
def test_signature_is_the_one_that_obstore_makes(key: str) -> None:
    store = S3Store(
        BUCKET,
        endpoint="https://store.example:9000",
        region=REGION,
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET,
        virtual_hosted_style_request=False,
    )
    theirs = obstore.sign(store, "GET", key, timedelta(seconds=90))
    signed_at = datetime.strptime(
        parse_qs(urlsplit(theirs).query)["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ"
    ).replace(tzinfo=UTC)
    ours = presign_get(
        "https://store.example:9000", f"/{BUCKET}/{key}", {}, key=KEY, at=signed_at, seconds=90
    )
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)


def _address(server: S3Server, **changes: object) -> str:
    options = {"key": KEY, "at": datetime.now(UTC), "seconds": 60, **changes}
    query = {"response-content-type": "text/plain; charset=utf-8", "prefix": "a/ \u00e9+~*'"}
    return presign_get(server.endpoint, f"/{BUCKET}", query, **options)  # type: ignore[arg-type]  # as given


def _get(address: str) -> int:
    return httpx.get(address, trust_env=False).status_code


def test_server_takes_the_signature(s3_server: S3Server) -> None:
    assert _get(_address(s3_server)) == 200


def test_server_refuses_an_address_that_was_changed(s3_server: S3Server) -> None:
    assert _get(_address(s3_server).replace("prefix=a", "prefix=b")) == 403


def test_server_refuses_a_signature_of_another_secret(s3_server: S3Server) -> None:
    assert _get(_address(s3_server, key=SigningKey(ACCESS_KEY_ID, b"guess", REGION))) == 403


def test_server_refuses_an_address_that_has_run_out(s3_server: S3Server) -> None:
    signed_at = datetime.now(UTC) - timedelta(seconds=61)
    assert _get(_address(s3_server, at=signed_at)) in (400, 403)


def test_secret_is_not_in_the_text_of_a_key() -> None:
    assert SECRET not in repr(KEY)
