"""What every store must do."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from service.settings import Settings
from service.storage import (
    ContentDiffers,
    InvalidKey,
    ObjectMissing,
    ObjectStore,
    StorageError,
    TooLarge,
    make_store,
)
from service.storage.obstore_store import PART_BYTES, ObstoreStore
from tests.s3 import S3Server

KEY = "models/model_01"
CONTENT = os.urandom(5 << 20)
LARGE = os.urandom(1 << 20) * 20
"""Three parts."""


class Bench:
    """A store, and a look behind it."""

    def __init__(self, store: ObjectStore, remains: Callable[[], list[str]]) -> None:
        self.store = store
        self.remains = remains


def _folder_bench(folder: Path) -> Bench:
    def remains() -> list[str]:
        return [str(path) for path in folder.rglob("*") if path.is_file()]

    return Bench(make_store(Settings(_env_file=None, storage_url=f"file:{folder}")), remains)


def _s3_bench(server: S3Server) -> Bench:
    settings = server.settings()
    prefix = settings["storage_url"].rpartition("/")[2]
    store = make_store(Settings(_env_file=None, **settings))
    return Bench(store, lambda: server.remains(prefix))


@pytest.fixture(params=["folder", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "folder":
        return _folder_bench(tmp_path / "store")
    return _s3_bench(request.getfixturevalue("s3_server"))


Remains = Callable[[], list[str]]


@pytest.fixture
def store(bench: Bench) -> ObjectStore:
    return bench.store


@pytest.fixture
def remains(bench: Bench) -> Remains:
    """What lies behind the store, unfinished uploads included."""
    return bench.remains


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


def test_large_stream_goes_in_parts_and_comes_back_whole(store: ObjectStore) -> None:
    assert len(LARGE) > 2 * PART_BYTES
    stored = asyncio.run(store.put(KEY, _chunks(LARGE)))
    assert stored.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert _read(store) == LARGE


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


def test_stream_over_the_limit_in_a_later_part_leaves_nothing(
    store: ObjectStore, remains: Remains
) -> None:
    with pytest.raises(TooLarge):
        _put(store, LARGE, limit=len(LARGE) - 1)
    assert _is_missing(store)
    assert remains() == []


def test_broken_stream_raises_its_own_error_and_leaves_nothing(
    store: ObjectStore, remains: Remains
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
    assert remains() == []


def test_stream_cancelled_while_it_flows_leaves_nothing(
    store: ObjectStore, remains: Remains
) -> None:
    async def cancel_midway() -> None:
        under_way = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            for count in range(1000):
                yield bytes(1 << 20)
                if count == 20:
                    under_way.set()
                await asyncio.sleep(0)

        task = asyncio.create_task(store.put(KEY, endless()))
        await under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(cancel_midway(), 20))
    assert _is_missing(store)
    assert remains() == []


def test_stream_cancelled_while_it_waits_leaves_nothing(
    store: ObjectStore, remains: Remains
) -> None:
    async def cancel_midway() -> None:
        waits = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes(1 << 20)
            waits.set()
            await asyncio.Event().wait()

        # As a server does it: such a scope cancels again at every further wait.
        async with anyio.create_task_group() as group:
            group.start_soon(store.put, KEY, stuck())
            await waits.wait()
            group.cancel_scope.cancel()

    asyncio.run(asyncio.wait_for(cancel_midway(), 20))
    assert _is_missing(store)
    assert remains() == []


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


def test_large_file_goes_in_and_comes_out_with_its_hash(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    stored = store.put_file(KEY, source)
    assert stored.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert store.fetch(KEY, target, sha256=stored.sha256) == stored


class _Enough(Exception):
    """Raised by a check that does not want the transfer any more."""


def _check_that_fails_later() -> Callable[[], None]:
    calls = iter(range(2))

    def check() -> None:
        if next(calls, None) is None:
            raise _Enough

    return check


def test_transfers_end_when_their_check_fails_and_leave_nothing(
    store: ObjectStore, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    with pytest.raises(_Enough):
        store.put_file(KEY, source, check=_check_that_fails_later())
    assert _is_missing(store)
    store.put_file(KEY, source)
    with pytest.raises(_Enough):
        store.fetch(KEY, target, check=_check_that_fails_later())
    assert list(tmp_path.glob("target*")) == []


def test_file_that_is_not_there_is_an_error_of_the_file(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put_file(KEY, tmp_path / "none")


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


def test_list_gives_what_is_below_a_prefix_of_whole_ids(store: ObjectStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    for key, size in (("jobs/job_1/a", 1), ("jobs/job_1/b", 2), ("jobs/job_10/a", 3), ("up", 4)):
        asyncio.run(store.put(key, _chunks(bytes(size))))
    listed = {found.key: found for found in store.list("jobs/job_1")}
    assert {key: found.bytes for key, found in listed.items()} == {
        "jobs/job_1/a": 1,
        "jobs/job_1/b": 2,
    }
    for found in listed.values():
        assert found.modified_at.utcoffset() == timedelta(0)
        assert before <= found.modified_at <= datetime.now(UTC) + timedelta(seconds=2)
    assert {found.key for found in store.list("jobs")} == {*listed, "jobs/job_10/a"}
    assert {found.key for found in store.list()} == {*listed, "jobs/job_10/a", "up"}


def test_list_of_nothing_is_empty(store: ObjectStore) -> None:
    assert list(store.list()) == []
    assert list(store.list("models")) == []


def test_list_has_no_object_that_is_still_being_written(store: ObjectStore) -> None:
    async def listed_midway() -> list[str]:
        found: list[str] = []

        async def chunks() -> AsyncIterator[bytes]:
            yield LARGE
            found.extend(entry.key for entry in store.list())

        await store.put(KEY, chunks())
        return found

    assert asyncio.run(listed_midway()) == []
    assert [found.key for found in store.list()] == [KEY]


def test_list_of_what_is_no_prefix_is_refused(store: ObjectStore) -> None:
    with pytest.raises(InvalidKey):
        list(store.list("../up"))


def test_ping_of_a_store_that_answers_is_silent_and_leaves_nothing(
    store: ObjectStore, remains: Remains
) -> None:
    store.ping()
    assert remains() == []


def test_ping_of_a_store_that_is_gone_raises(tmp_path: Path) -> None:
    store = make_store(Settings(_env_file=None, storage_url=f"file:{tmp_path / 'store'}"))
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("now a file")
    with pytest.raises(StorageError):
        store.ping()


def test_share_that_is_away_is_a_store_that_does_not_answer(tmp_path: Path) -> None:
    """Not a missing object: whoever asks may try again."""
    store = ObstoreStore.local(tmp_path / "store")
    (tmp_path / "store" / "jobs").write_bytes(b"no folder")
    with pytest.raises(StorageError) as caught:
        store.fetch("jobs/artifact_1", tmp_path / "target")
    assert type(caught.value) is StorageError
