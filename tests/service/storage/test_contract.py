"""What every store must do."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.storage import (
    ContentDiffers,
    InvalidKey,
    ObjectMissing,
    ObjectStore,
    StorageError,
    TooLarge,
)
from service.storage.obstore_store import ObstoreStore

KEY = "models/model_01"
CONTENT = os.urandom(5 << 20)


def _local(folder: Path) -> ObjectStore:
    return ObstoreStore.local(folder / "store")


@pytest.fixture(params=[_local])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    make: Callable[[Path], ObjectStore] = request.param
    return make(tmp_path)


async def _chunks(content: bytes, size: int = 1 << 18) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def _put(store: ObjectStore, content: bytes = CONTENT, *, limit: int | None = None) -> str:
    return asyncio.run(store.put(KEY, _chunks(content), limit=limit)).sha256


def _read(store: ObjectStore, start: int = 0, end: int | None = None) -> bytes:
    async def read() -> bytes:
        return b"".join([chunk async for chunk in store.open(KEY, start, end)])

    return asyncio.run(read())


def _is_missing(store: ObjectStore) -> bool:
    try:
        asyncio.run(store.size(KEY))
    except ObjectMissing:
        return True
    return False


def test_stream_comes_back_as_it_went_in(store: ObjectStore) -> None:
    stored = asyncio.run(store.put(KEY, _chunks(CONTENT)))
    assert (stored.bytes, stored.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert _read(store) == CONTENT
    assert asyncio.run(store.size(KEY)) == len(CONTENT)


def test_empty_stream_is_an_empty_object(store: ObjectStore) -> None:
    _put(store, b"")
    assert asyncio.run(store.size(KEY)) == 0
    assert _read(store) == b""


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 100), (100, 200), (3 << 20, None), (5, 5), (0, 5 << 20)]
)
def test_range_gives_its_bytes_alone(store: ObjectStore, start: int, end: int | None) -> None:
    _put(store)
    assert _read(store, start, end) == CONTENT[start:end]


def test_stream_of_just_the_limit_is_stored(store: ObjectStore) -> None:
    _put(store, limit=len(CONTENT))
    assert _read(store) == CONTENT


def test_stream_over_the_limit_leaves_nothing(store: ObjectStore) -> None:
    with pytest.raises(TooLarge) as caught:
        _put(store, limit=len(CONTENT) - 1)
    assert caught.value.limit == len(CONTENT) - 1
    assert _is_missing(store)


def test_broken_stream_raises_its_own_error_and_leaves_nothing(
    store: ObjectStore, tmp_path: Path
) -> None:
    class HungUp(Exception):
        pass

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(1 << 20)
        raise HungUp

    with pytest.raises(HungUp):
        asyncio.run(store.put(KEY, broken()))
    assert _is_missing(store)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_cancelled_stream_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    async def cancel_midway() -> None:
        under_way = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            for count in range(1000):
                yield bytes(1 << 20)
                if count == 20:
                    under_way.set()
                await asyncio.sleep(0)
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put(KEY, endless()))
        await under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while any(path.is_file() for path in tmp_path.rglob("*")):
            await asyncio.sleep(0.01)  # the abort runs on after the cancellation

    asyncio.run(asyncio.wait_for(cancel_midway(), 20))
    assert _is_missing(store)


def test_broken_overwrite_keeps_the_object_that_was_there(store: ObjectStore) -> None:
    _put(store)
    with pytest.raises(TooLarge):
        _put(store, bytes(10), limit=9)
    assert _read(store) == CONTENT


def test_two_uploads_at_once_do_not_mix(store: ObjectStore) -> None:
    async def both() -> None:
        await asyncio.gather(
            store.put("models/model_02", _chunks(b"a" * (3 << 20))),
            store.put("models/model_03", _chunks(b"b" * (3 << 20))),
        )
        for key, letter in (("models/model_02", b"a"), ("models/model_03", b"b")):
            content = b"".join([chunk async for chunk in store.open(key)])
            assert content == letter * (3 << 20)

    asyncio.run(both())


def test_file_goes_in_and_comes_out_with_its_hash(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    stored = store.put_file(KEY, source)
    assert store.fetch(KEY, target, sha256=stored.sha256) == stored
    assert target.read_bytes() == CONTENT


def test_link_is_not_stored(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        store.put_file(KEY, tmp_path / "link")
    assert _is_missing(store)


def test_pipe_is_not_stored(store: ObjectStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        store.put_file(KEY, tmp_path / "pipe")
    assert _is_missing(store)


def test_fetch_of_other_bytes_is_refused_and_leaves_no_file(
    store: ObjectStore, tmp_path: Path
) -> None:
    received = _put(store)
    with pytest.raises(ContentDiffers) as caught:
        store.fetch(KEY, tmp_path / "target", sha256="0" * 64)
    assert (caught.value.expected, caught.value.received) == ("0" * 64, received)
    assert not list(tmp_path.glob("target*"))


def test_missing_object_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match=KEY):
        _read(store)
    with pytest.raises(ObjectMissing):
        store.fetch(KEY, tmp_path / "target")


def test_empty_range_of_a_missing_object_is_missing(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing):
        _read(store, 3, 3)


def test_deleted_object_is_gone_and_deleting_it_again_is_fine(store: ObjectStore) -> None:
    _put(store)
    store.delete(KEY)
    assert _is_missing(store)
    store.delete(KEY)


@pytest.mark.parametrize(
    "key", ["", "../up", "a/../b", "/abs", "a//b", "a/", "My Model.pt", "a\0b", "é", "x" * 301]
)
def test_key_that_is_not_made_of_ids_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(InvalidKey):
        asyncio.run(store.put(key, _chunks(b"x")))
    with pytest.raises(InvalidKey):
        store.delete(key)


def test_ping_of_a_store_that_answers_is_silent_and_leaves_nothing(
    store: ObjectStore, tmp_path: Path
) -> None:
    store.ping()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ping_of_a_store_that_is_gone_raises(tmp_path: Path) -> None:
    store = ObstoreStore.local(tmp_path / "store")
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("now a file")
    with pytest.raises(StorageError):
        store.ping()
