"""What every object store does, and what can go wrong with one."""

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

_KEY = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")
MAX_KEY_LENGTH = 300


class StorageError(Exception):
    """Base of what can go wrong with a store; by itself: the store does not answer, or refuses."""


class InvalidKey(StorageError):
    """A key is not made of ids alone."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"expected lower-case letters, digits, underscores and single slashes, at most "
            f"{MAX_KEY_LENGTH} characters, got {key!r}"
        )
        self.key = key


class ObjectMissing(StorageError):
    """Nothing lies under the key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the store has no object {key}")
        self.key = key


class TooLarge(StorageError):
    """More bytes came than are allowed; nothing was stored."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes came")
        self.limit = limit


class ContentDiffers(StorageError):
    """The bytes are not those that the SHA-256 was taken of."""

    def __init__(self, key: str, *, expected: str, received: str) -> None:
        super().__init__(f"the object {key} has the SHA-256 {received}, expected was {expected}")
        self.key = key
        self.expected = expected
        self.received = received


class BucketMissing(StorageError):
    """The store has no such bucket."""

    def __init__(self, bucket: str) -> None:
        super().__init__(f"the store has no bucket {bucket}; make it, or correct storage_url")
        self.bucket = bucket


class AccessRefused(StorageError):
    """The store does not take the credentials, or their owner may not do this."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the store refuses access: {reason}; check s3_access_key_id, s3_secret_access_key, "
            "s3_region and what their owner may do"
        )
        self.reason = reason


class CredentialsMissing(StorageError):
    """No credentials are set, and the machine gives none."""

    def __init__(self) -> None:
        super().__init__(
            "found no credentials for the store: set s3_access_key_id and s3_secret_access_key, or "
            "give this machine a role"
        )


@dataclass(frozen=True)
class StoredObject:
    """What was stored.

    Attributes:
        bytes: Its size.
        sha256: Of its content, lower-case hexadecimal.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ListedObject:
    """An object in a list.

    Attributes:
        key: Where it lies.
        bytes: Its size.
        modified_at: When it was written, in UTC, by the store's clock.
    """

    key: str
    bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Files under keys. The API streams, asynchronously; the worker moves whole files.

    Keys are ids joined by slashes: never a name that a user chose. An object is written whole or
    not at all, and never changed. All methods raise `InvalidKey` and `StorageError`.
    """

    async def put(
        self, key: str, chunks: AsyncIterable[bytes], *, limit: int | None = None
    ) -> StoredObject:
        """Stores a stream in constant memory, hashing as it goes.

        If `chunks` raises, or the task is cancelled, nothing lies under the key.

        Raises:
            TooLarge: More than `limit` bytes came.
        """
        ...

    def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`; without it up to the end.

        Raises:
            ObjectMissing: On the first chunk: there is no such object.
        """
        ...

    async def size(self, key: str) -> int:
        """Bytes of an object.

        Raises:
            ObjectMissing: There is none.
        """
        ...

    def put_file(
        self, key: str, path: Path, *, check: Callable[[], object] = lambda: None
    ) -> StoredObject:
        """Stores a regular file, hashing as it goes. Anything else is refused (`OSError`).

        Args:
            key: Where it will lie.
            path: The file.
            check: Called again and again meanwhile; if it raises, nothing lies under the key.
        """
        ...

    def fetch(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> StoredObject:
        """Copies an object to a file, which is there whole or not at all.

        Args:
            key: The object.
            path: The file.
            sha256: What the content must have, if that is known.
            check: Called again and again meanwhile; if it raises, there is no file.

        Raises:
            ObjectMissing: There is none.
            ContentDiffers: The content does not have the given SHA-256.
        """
        ...

    def delete(self, key: str) -> None:
        """Deletes an object; one that is not there is fine."""
        ...

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """The objects whose keys are below a prefix of whole ids; without one, all.

        In constant memory and in no certain order. What is not under a key of ours is left out:
        somebody else put it there.
        """
        ...

    def remove_unfinished(
        self, prefix: str, before: datetime, *, is_stopping: Callable[[], bool] = lambda: False
    ) -> int:
        """Removes what is left of uploads below a prefix that were cut off; gives how many.

        In a folder, what was last written to before that time; what cannot be removed is logged and
        stays. A bucket does it by its own rules: there nothing is done.

        Args:
            prefix: One or more whole ids.
            before: What was written to since then stays.
            is_stopping: Asked again and again; it ends early where this says so.
        """
        ...

    async def presigned(self, key: str, *, disposition: str, media_type: str) -> str | None:
        """An address where anybody gets the object for a while, straight from the store.

        None where the store has no such thing or the operator does not want it. Whether the object
        is there is not looked at.

        Args:
            key: The object.
            disposition: The `Content-Disposition` it comes with, where the store can do that.
            media_type: The `Content-Type` it comes with, where the store can do that.
        """
        ...

    def ping(self) -> None:
        """Raises `StorageError` if the store cannot be written; waits for 3 s at most."""
        ...


def check_key(key: str) -> str:
    """The key, if it is one.

    Raises:
        InvalidKey: It is not.
    """
    if not is_key(key):
        raise InvalidKey(key)
    return key


def is_key(text: str) -> bool:
    """Whether a text can be the key of an object."""
    return len(text) <= MAX_KEY_LENGTH and _KEY.fullmatch(text) is not None
