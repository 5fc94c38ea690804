"""What obstore's errors mean."""

import re

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from service.storage.contract import (
    AccessRefused,
    BucketMissing,
    CredentialsMissing,
    ObjectMissing,
    StorageError,
)

# S3 answers errors with a small XML document; an answer to HEAD has none.
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*([^<]*?)\s*</Message>")
_REFUSED = re.compile(r"status code: 40[13] ")
_BAD_TOKENS = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_MACHINE_ROLE = re.compile(r"/latest/(api/token|meta-data)")


def named(error: Exception, key: str, bucket: str) -> StorageError:
    """An error of obstore as one of ours.

    What a server says is cut down to its code and sentence, and is not kept as the cause either:
    the rest of it may repeat a token.

    Args:
        error: It.
        key: What was asked for.
        bucket: Where; empty: in a folder.
    """
    # Behind the sentence obstore writes out its own structures.
    text = str(error).partition("\n\nDebug source")[0].strip()
    made = _named(error, text, key, bucket)
    made.__cause__ = None if bucket and "status code:" in text else error
    return made


def _named(error: Exception, text: str, key: str, bucket: str) -> StorageError:
    code = _first(_CODE, text)
    said = " ".join(filter(None, (code, _first(_MESSAGE, text)))) if code else text
    if bucket:
        if code == "NoSuchBucket":
            return BucketMissing(bucket)
        if (
            isinstance(error, PermissionDeniedError | UnauthenticatedError)
            or _REFUSED.search(text)
            or code in _BAD_TOKENS
        ):
            return AccessRefused(said)
        if _MACHINE_ROLE.search(text):
            return CredentialsMissing()
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(key)
    return StorageError(f"the store failed on {key}: {said}")


def is_no_range(error: BaseError) -> bool:
    """Whether a server did not answer a range as one."""
    return "non-partial response" in str(error)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
