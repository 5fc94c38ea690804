"""Addresses signed with Signature Version 4, in the query, as Amazon documents it.

obstore signs addresses too, but not with the `response-content-disposition` that gives a download
its name. https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class SigningKey:
    """An access key, and the region it is used in."""

    access_key_id: str
    secret: bytes
    region: str

    def __repr__(self) -> str:
        return f"SigningKey({self.access_key_id!r}, region={self.region!r})"


def presign_get(
    origin: str,
    path: str,
    query: Mapping[str, str],
    *,
    key: SigningKey,
    at: datetime,
    seconds: int,
) -> str:
    """The address of a GET that is good for so many seconds from a time on.

    Args:
        origin: Scheme, host and, if it is not the scheme's own, port: the signature holds for the
            `Host` that a client sends.
        path: From the root, not encoded.
        query: Further parameters, not encoded.
        key: Who signs.
        at: When, with its zone.
        seconds: 1 to 604,800.
    """
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = (stamp[:8], key.region, "s3", "aws4_request")
    parameters = {
        **query,
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": "/".join((key.access_key_id, *scope)),
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    canonical_path = _encode(path, keep="/")
    canonical_query = "&".join(
        f"{name}={value}"
        for name, value in sorted((_encode(n), _encode(v)) for n, v in parameters.items())
    )
    host = origin.partition("://")[2]
    request = "\n".join(
        ("GET", canonical_path, canonical_query, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD")
    )
    to_sign = "\n".join(
        (ALGORITHM, stamp, "/".join(scope), hashlib.sha256(request.encode()).hexdigest())
    )
    derived = b"AWS4" + key.secret
    for part in scope:
        derived = hmac.digest(derived, part.encode(), "sha256")
    signature = hmac.digest(derived, to_sign.encode(), "sha256").hex()
    return f"{origin}{canonical_path}?{canonical_query}&X-Amz-Signature={signature}"


def _encode(text: str, keep: str = "") -> str:
    return quote(text, safe=f"-_.~{keep}")
