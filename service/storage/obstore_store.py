"""Object stores that the obstore library speaks to: a local folder, later S3."""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from service.db.base import new_id
from service.storage.contract import (
    ContentDiffers,
    ObjectMissing,
    StorageError,
    StoredObject,
    TooLarge,
    check_key,
)
from service.storage.regular import open_regular

PART_BYTES = 8 << 20
"""S3 takes at most 10,000 parts of an object: 78 GiB with this size."""
PARTS_IN_FLIGHT = 2
CHUNK_BYTES = 1 << 20


class _Tally:
    """Counts and hashes what passes by."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._hash = hashlib.sha256()
        self._bytes = 0

    def add(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._limit is not None and self._bytes > self._limit:
            raise TooLarge(self._limit)
        self._hash.update(chunk)

    def total(self) -> StoredObject:
        return StoredObject(self._bytes, self._hash.hexdigest())


class ObstoreStore:
    """The contract over one of obstore's stores."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @classmethod
    def local(cls, folder: Path) -> "ObstoreStore":
        """Files in a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(LocalStore(folder.resolve(), automatic_cleanup=True))

    async def put(
        self, key: str, chunks: AsyncIterable[bytes], *, limit: int | None = None
    ) -> StoredObject:
        """See the contract."""
        check_key(key)
        tally = _Tally(limit)

        async def counted() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                tally.add(chunk)
                yield chunk

        with _named_errors(key):
            # What the iterator raises aborts the upload and comes out of here as it is.
            await obstore.put_async(
                self._store,
                key,
                counted(),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        return tally.total()

    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See the contract."""
        check_key(key)
        if end is not None and end <= start:
            await self.size(key)
            return
        wanted: Any = {"offset": start} if end is None else (start, end)
        with _named_errors(key):
            options: Any = {} if start == 0 and end is None else {"range": wanted}
            result = await obstore.get_async(self._store, key, options=options)
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def size(self, key: str) -> int:
        """See the contract."""
        check_key(key)
        with _named_errors(key):
            return (await obstore.head_async(self._store, key))["size"]

    def put_file(self, key: str, path: Path) -> StoredObject:
        """See the contract."""
        check_key(key)
        tally = _Tally()

        def counted() -> Iterator[bytes]:
            # A process that reads untrusted files wrote the folder: follow no link out of it.
            with open_regular(path) as file:
                while chunk := file.read(CHUNK_BYTES):
                    tally.add(chunk)
                    yield chunk

        with _named_errors(key):
            obstore.put(
                self._store,
                key,
                counted(),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        return tally.total()

    def fetch(self, key: str, path: Path, *, sha256: str | None = None) -> StoredObject:
        """See the contract."""
        check_key(key)
        tally = _Tally()
        part = path.with_name(f"{path.name}.part")
        try:
            with _named_errors(key):
                result = obstore.get(self._store, key)
                with part.open("wb") as file:
                    for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                        tally.add(chunk)
                        file.write(chunk)
            fetched = tally.total()
            if sha256 is not None and fetched.sha256 != sha256:
                raise ContentDiffers(key, expected=sha256, received=fetched.sha256)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return fetched

    def delete(self, key: str) -> None:
        """See the contract."""
        check_key(key)
        try:
            with _named_errors(key):
                obstore.delete(self._store, key)
        except ObjectMissing:
            pass

    def ping(self) -> None:
        """See the contract."""
        key = f"ping/{new_id('ping')}"
        with _named_errors(key):
            obstore.put(self._store, key, b"ping", use_multipart=False)
            obstore.delete(self._store, key)


@contextmanager
def _named_errors(key: str) -> Iterator[None]:
    """obstore's errors as ours; what a caller's iterator raises passes through."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(key) from error
    except BaseError as error:
        raise StorageError(f"the store failed on {key}: {error}") from error
