"""What every object store does, and what can go wrong with one."""

import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class StoredObject:
    """What was stored.

    Attributes:
        bytes: Its size.
        sha256: Of its content, lower-case hexadecimal.
    """

    bytes: int
    sha256: str


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

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Stores a regular file, hashing as it goes. Anything else is refused (`OSError`)."""
        ...

    def fetch(self, key: str, path: Path, *, sha256: str | None = None) -> StoredObject:
        """Copies an object to a file, which is there whole or not at all.

        Raises:
            ObjectMissing: There is none.
            ContentDiffers: The content does not have the given SHA-256.
        """
        ...

    def delete(self, key: str) -> None:
        """Deletes an object; one that is not there is fine."""
        ...

    def ping(self) -> None:
        """Raises `StorageError` if the store cannot be written and read."""
        ...


def check_key(key: str) -> str:
    """The key, if it is one.

    Raises:
        InvalidKey: It is not.
    """
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidKey(key)
    return key
