"""Object stores that the obstore library speaks to: a local folder, S3."""

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import anyio
import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from service.db.base import new_id
from service.storage import failures
from service.storage.contract import (
    ContentDiffers,
    ListedObject,
    ObjectMissing,
    StorageError,
    StoredObject,
    TooLarge,
    check_key,
    is_key,
)
from service.storage.regular import open_regular
from service.storage.s3 import S3

PART_BYTES = 8 << 20
"""Of a part of an upload, unless there would be too many of them: with this size from 78 GiB on."""
MAX_PARTS = 10_000
"""S3 takes no more for one object."""
PARTS_IN_FLIGHT = 2
CHUNK_BYTES = 1 << 20
COPY_BYTES = 64 << 20
LIST_PAGE = 1000
ABORT_SECONDS = 10.0
"""How long a cancelled upload may take to be aborted before it is left to itself."""

log = structlog.get_logger(__name__)


class _Tally:
    """Counts and hashes what passes by."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._hash = hashlib.sha256()
        self._bytes = 0

    def add(self, chunk: bytes | memoryview) -> None:
        self._bytes += len(chunk)
        if self._limit is not None and self._bytes > self._limit:
            raise TooLarge(self._limit)
        self._hash.update(chunk)

    def total(self) -> StoredObject:
        return StoredObject(self._bytes, self._hash.hexdigest())


class _Stopped(Exception):
    """The upload was cancelled."""


class _Feed:
    """Hands the chunks of a stream to obstore, counted, until it is told to stop.

    obstore aborts an upload when its source raises, but not when it is itself cancelled; and should
    the aborting fail, it says so instead of what the source raised.

    Attributes:
        failure: What the stream raised.
    """

    def __init__(self, chunks: AsyncIterable[bytes], tally: _Tally) -> None:
        self._chunks = aiter(chunks)
        self._tally = tally
        self.failure: Exception | None = None
        self._stopped = False
        self._waiting: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Makes it raise instead of going on, now if it waits for a chunk."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._stopped:
            raise _Stopped
        self._waiting = asyncio.current_task()
        try:
            chunk = await anext(self._chunks)
            self._tally.add(chunk)
        except StopAsyncIteration:
            raise
        except asyncio.CancelledError:
            if self._stopped:
                raise _Stopped from None
            raise
        except Exception as failure:
            self.failure = failure
            raise
        finally:
            self._waiting = None
        return chunk


class ObstoreStore:
    """The contract over one of obstore's stores.

    Args:
        store: Where the files are.
        probe: The same place, for `ping`: one that does not wait.
        s3: What signs addresses, and names the bucket in errors.
        folder: Where the files are, if in a folder.
    """

    def __init__(
        self, store: Any, *, probe: Any = None, s3: S3 | None = None, folder: Path | None = None
    ) -> None:
        self._store = store
        self._folder = folder
        self._probe = probe or store
        self._s3 = s3
        self._bucket = "" if s3 is None else s3.place.bucket

    @classmethod
    def local(cls, folder: Path) -> Self:
        """Files in a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        return cls(LocalStore(folder, automatic_cleanup=True), folder=folder)

    @classmethod
    def s3(cls, s3: S3) -> Self:
        """Files in a bucket."""
        return cls(s3.store(), probe=s3.probe(), s3=s3)

    async def put(
        self, key: str, chunks: AsyncIterable[bytes], *, limit: int | None = None
    ) -> StoredObject:
        """See the contract."""
        check_key(key)
        tally = _Tally(limit)
        feed = _Feed(chunks, tally)
        try:
            with self._named_errors(key):
                await self._put(key, feed, part_bytes(limit))
        except StorageError:
            if feed.failure is not None:
                raise feed.failure from feed.failure.__cause__
            raise
        return tally.total()

    async def _put(self, key: str, feed: _Feed, part: int) -> None:
        upload = asyncio.ensure_future(
            obstore.put_async(
                self._store,
                key,
                feed,
                use_multipart=True,
                chunk_size=part,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        )
        try:
            await asyncio.shield(upload)
        except asyncio.CancelledError:
            feed.stop()
            await self._undo(key, upload)
            raise

    async def _undo(self, key: str, upload: asyncio.Future[Any]) -> None:
        """Waits until a stopped upload has been aborted; deletes what it had stored by then."""
        upload.add_done_callback(lambda done: done.cancelled() or done.exception())
        with anyio.move_on_after(ABORT_SECONDS, shield=True), suppress(Exception):
            await asyncio.shield(upload)
            await obstore.delete_async(self._store, key)

    async def open(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See the contract."""
        check_key(key)
        if end is not None and end <= start:
            await self.size(key)
            return
        with self._named_errors(key):
            result, skip = await self._get(key, start, end)
            left = None if end is None else end - start
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                piece = bytes(chunk)[skip:][:left]
                skip = max(0, skip - len(chunk))
                if piece:
                    yield piece
                if left is not None:
                    left -= len(piece)
                    if left == 0:
                        return

    async def _get(self, key: str, start: int, end: int | None) -> tuple[Any, int]:
        """A part of an object, and how many bytes of it to skip."""
        if start == 0 and end is None:
            return await obstore.get_async(self._store, key), 0
        wanted: Any = {"offset": start} if end is None else (start, end)
        try:
            return await obstore.get_async(self._store, key, options={"range": wanted}), 0
        except BaseError as error:
            # Some servers that speak S3 call a part 200, which obstore rightly does not trust.
            if not failures.is_no_range(error):
                raise
            return await obstore.get_async(self._store, key), start

    async def size(self, key: str) -> int:
        """See the contract."""
        check_key(key)
        with self._named_errors(key):
            return (await obstore.head_async(self._store, key))["size"]

    def put_file(
        self, key: str, path: Path, *, check: Callable[[], object] = lambda: None
    ) -> StoredObject:
        """See the contract."""
        check_key(key)
        tally = _Tally()
        # A process that reads untrusted files wrote the folder: follow no link out of it.
        with open_regular(path) as file:

            def counted() -> Iterator[bytes]:
                while chunk := file.read(CHUNK_BYTES):
                    check()
                    tally.add(chunk)
                    yield chunk

            with self._named_errors(key):
                obstore.put(
                    self._store,
                    key,
                    counted(),
                    use_multipart=True,
                    chunk_size=part_bytes(os.fstat(file.fileno()).st_size),
                    max_concurrency=PARTS_IN_FLIGHT,
                )
        return tally.total()

    def fetch(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> StoredObject:
        """See the contract."""
        check_key(key)
        part = path.with_name(f"{path.name}.part")
        try:
            if self._folder is not None and sys.platform == "linux":
                fetched = self._copy(self._folder / key, key, part, check)
            else:
                fetched = self._download(key, part, check)
            if sha256 is not None and fetched.sha256 != sha256:
                raise ContentDiffers(key, expected=sha256, received=fetched.sha256)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return fetched

    def _download(self, key: str, path: Path, check: Callable[[], object]) -> StoredObject:
        tally = _Tally()
        with self._named_errors(key):
            result = obstore.get(self._store, key)
            with path.open("wb") as file:
                for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                    check()
                    tally.add(chunk)
                    file.write(chunk)
        return tally.total()

    def _copy(
        self, stored: Path, key: str, path: Path, check: Callable[[], object]
    ) -> StoredObject:
        """By the kernel, then hashed: obstore's stream took five times as long for a gigabyte."""
        try:
            with self._named_errors(key):
                source = stored.open("rb")
        except OSError as error:  # a share that is away, most often
            raise StorageError(f"the store failed on {key}: {error.strerror}") from error
        with source, path.open("wb") as file:
            while os.sendfile(file.fileno(), source.fileno(), None, COPY_BYTES):
                check()
        tally = _Tally()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                check()
                tally.add(buffer[:count])
        return tally.total()

    def delete(self, key: str) -> None:
        """See the contract."""
        check_key(key)
        try:
            with self._named_errors(key):
                obstore.delete(self._store, key)
        except ObjectMissing:
            pass

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """See the contract."""
        if prefix:
            check_key(prefix)
        with self._named_errors(prefix or "its list"):
            for page in obstore.list(self._store, prefix or None, chunk_size=LIST_PAGE):
                for found in page:
                    if is_key(found["path"]):
                        yield ListedObject(
                            found["path"], found["size"], found["last_modified"].astimezone(UTC)
                        )

    def remove_unfinished(
        self, prefix: str, before: datetime, *, is_stopping: Callable[[], bool] = lambda: False
    ) -> int:
        """See the contract."""
        check_key(prefix)
        if self._folder is None:
            return 0
        removed = 0
        # Not by `rglob`, which ends with an error where a folder goes meanwhile.
        for folder, _, names in os.walk(self._folder / prefix, onerror=_tell_unread):
            for name in names:
                if is_stopping():
                    return removed
                path = Path(folder, name)
                key, _, number = path.relative_to(self._folder).as_posix().partition("#")
                if is_key(key) and number.isdecimal():  # else somebody else's
                    removed += _remove_if_old(path, before)
            if is_stopping():
                return removed
        return removed

    async def presigned(self, key: str, *, disposition: str, media_type: str) -> str | None:
        """See the contract."""
        check_key(key)
        if self._s3 is None:
            return None
        with self._named_errors(key):
            return await self._s3.presigned(key, disposition=disposition, media_type=media_type)

    def ping(self) -> None:
        """See the contract."""
        key = f"ping/{new_id('ping')}"
        with self._named_errors(key):
            obstore.put(self._probe, key, b"ping", use_multipart=False)
            obstore.delete(self._probe, key)

    @contextmanager
    def _named_errors(self, key: str) -> Iterator[None]:
        """obstore's errors as ours; what a caller's iterator raises passes through."""
        try:
            yield
        except (FileNotFoundError, BaseError) as error:
            named = failures.named(error, key, self._bucket)
            raise named from named.__cause__


def _remove_if_old(path: Path, before: datetime) -> bool:
    """Whether it was an old file and is gone now; what cannot be removed keeps no other here."""
    try:
        if not path.is_file() or path.lstat().st_mtime >= before.timestamp():
            return False
        path.unlink()
    except FileNotFoundError:  # an upload that ended meanwhile
        return False
    except OSError as error:
        log.warning("an unfinished file stays in the store", path=str(path), reason=str(error))
        return False
    return True


def _tell_unread(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # else it went meanwhile, or is not there yet
        log.warning("a folder of the store could not be read", reason=str(error))


def part_bytes(bytes_at_most: int | None) -> int:
    """The size of the parts that an upload of so many bytes goes in."""
    if bytes_at_most is None:
        return PART_BYTES
    return max(PART_BYTES, -(-bytes_at_most // MAX_PARTS))
