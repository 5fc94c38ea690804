"""Where a store on S3 lies, and obstore's stores and signed addresses for it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

from service.settings import Settings
from service.storage.signing import SigningKey, presign_get

if TYPE_CHECKING:  # obstore has these for type checkers alone
    from obstore.store import ClientConfig, RetryConfig, S3Credential

CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=2),
    # For the head of an answer, and then between its pieces: a part of 8 MiB needs 3 Mbit/s.
    "read_timeout": timedelta(seconds=20),
    # Of a whole answer: the longest download, to a client that may read slowly.
    "timeout": timedelta(days=1),
}
RETRIES: "RetryConfig" = {
    # A server that restarts is waited for, for some 6 s; one that is down is an error then.
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1.5),
        "base": 3,
    },
}
PROBE_CLIENT: "ClientConfig" = {
    # Readiness is asked for within 3 s, and a probe is two requests.
    "connect_timeout": timedelta(seconds=1),
    "timeout": timedelta(seconds=1.4),
}
PROBE_RETRIES: "RetryConfig" = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class WrongS3Settings(ValueError):
    """A setting of the store on S3 cannot be used."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
        self.setting = setting
        self.reason = reason


@dataclass(frozen=True)
class Place:
    """A bucket, and the folder of it that is ours.

    Attributes:
        origin: Scheme, host and port of the server; of the bucket if its name is in the host.
        bucket: Name of the bucket.
        prefix: Of all keys; empty: none.
        in_host: Whether the bucket's name is part of the host, as Amazon wants it.
    """

    origin: str
    bucket: str
    prefix: str
    in_host: bool

    def path(self, key: str) -> str:
        """The path of an object in an address."""
        folders = ("" if self.in_host else self.bucket, self.prefix, key)
        return "".join(f"/{folder}" for folder in folders if folder)


class S3:
    """A bucket as the settings name it.

    Args:
        settings: `storage_url` is `s3://BUCKET/PREFIX`.

    Raises:
        WrongS3Settings: One of them cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = _signing_key(settings)
        self.place = place_of(settings, settings.s3_endpoint, "s3_endpoint")
        self.public_place = self.place
        if settings.s3_public_endpoint is not None:
            self.public_place = place_of(
                settings, settings.s3_public_endpoint, "s3_public_endpoint"
            )
        self.seconds = max(1, round(settings.presigned_seconds))
        self._public = self._connect(self.public_place, CLIENT, RETRIES)

    def store(self) -> S3Store:
        """For files: patient enough for a server that restarts."""
        return self._connect(self.place, CLIENT, RETRIES)

    def probe(self) -> S3Store:
        """For asking whether the server answers: at once, or not at all."""
        return self._connect(self.place, PROBE_CLIENT, PROBE_RETRIES)

    async def presigned(self, key: str, *, disposition: str, media_type: str) -> str | None:
        """See the contract. With a machine's role the file comes without name and type."""
        if not self._settings.presigned_seconds:
            return None
        if self._key is None:
            return await obstore.sign_async(
                self._public, "GET", key, timedelta(seconds=self.seconds)
            )
        return presign_get(
            self.public_place.origin,
            self.public_place.path(key),
            {"response-content-disposition": disposition, "response-content-type": media_type},
            key=self._key,
            at=datetime.now(UTC),
            seconds=self.seconds,
        )

    def _connect(self, place: Place, client: "ClientConfig", retries: "RetryConfig") -> S3Store:
        options: dict[str, Any] = {}
        if self._key is not None:
            # Not as a plain key and secret: AWS_SESSION_TOKEN of the environment would join them.
            options["credential_provider"] = _provider(self._key)
        return S3Store(
            place.bucket,
            prefix=place.prefix or None,
            # Both, or AWS_ENDPOINT_URL_S3 of the environment would win.
            endpoint=place.origin,
            aws_endpoint_url_s3=place.origin,
            region=self._settings.s3_region,
            virtual_hosted_style_request=place.in_host,
            disable_bulk_delete=True,  # not every server has it, and we delete one by one
            client_options={"allow_http": place.origin.startswith("http://"), **client},
            retry_config=retries,
            **options,
        )


def place_of(settings: Settings, endpoint: str | None, setting: str) -> Place:
    """The bucket and folder of `storage_url` at an endpoint; without one, at Amazon's.

    Raises:
        WrongS3Settings: The URL or the endpoint cannot be used.
    """
    bucket, _, prefix = settings.storage_url.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    segments = prefix.split("/") if prefix else []
    if not _BUCKET.fullmatch(bucket) or not all(
        _SEGMENT.fullmatch(segment) and segment.strip(".") for segment in segments
    ):
        raise WrongS3Settings(
            "storage_url",
            "expected s3://BUCKET or s3://BUCKET/PREFIX of letters, digits, dots, dashes and "
            f"underscores, got {settings.storage_url!r}",
        )
    if endpoint is not None:
        return Place(_origin(endpoint, setting), bucket, prefix, in_host=False)
    amazon = f"s3.{settings.s3_region}.amazonaws.com"
    if "." in bucket:  # the certificate holds for one level of names
        return Place(f"https://{amazon}", bucket, prefix, in_host=False)
    return Place(f"https://{bucket}.{amazon}", bucket, prefix, in_host=True)


def _origin(endpoint: str, setting: str) -> str:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not plain:
        # Not shown: somebody may have put a password into it.
        raise WrongS3Settings(setting, "expected https://HOST:PORT or http://HOST:PORT, no more")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    # Without a port that the scheme has anyway, as clients write it into `Host`.
    named = port is not None and port != _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{host}:{port}" if named else f"{parts.scheme}://{host}"


def _signing_key(settings: Settings) -> SigningKey | None:
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    if (key_id is None) != (secret is None):
        missing = "s3_access_key_id" if key_id is None else "s3_secret_access_key"
        raise WrongS3Settings(missing, "the key's id and its secret are set together or not at all")
    if key_id is None or secret is None:
        return None
    return SigningKey(key_id, secret.get_secret_value().encode(), settings.s3_region)


def _provider(key: SigningKey) -> Callable[[], "S3Credential"]:
    def provide() -> "S3Credential":
        return {
            "access_key_id": key.access_key_id,
            "secret_access_key": key.secret.decode(),
            "token": None,
            "expires_at": None,
        }

    return provide
