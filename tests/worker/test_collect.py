"""Files in the store that no row points at."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from sanitizer.report.model import ArtifactKind
from service import queue
from service.db.session import SessionFactory, transaction
from service.db.tables import Artifact, Job, JobStatus
from service.settings import Settings
from service.storage import ObjectMissing, ObjectStore, make_store
from tests.builders import add_dataset, add_job, add_model, add_tenant
from tests.databases import every_database
from tests.worker.faulty_store import FaultyStore
from worker.collect import Collector
from worker.process import WorkerProcess
from worker.reconcile import serve

HOUR = timedelta(hours=1)


def _put(settings: Settings, key: str, *, age: timedelta = 2 * HOUR) -> None:
    path = Path(settings.storage_url.removeprefix("file:")) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    time = path.stat().st_mtime - age.total_seconds()
    os.utime(path, (time, time))


def _has(store: ObjectStore, key: str, folder: Path) -> bool:
    try:
        store.fetch(key, folder / "fetched")
    except ObjectMissing:
        return False
    return True


@every_database
def test_old_files_without_a_row_go_and_all_others_stay(
    settings: Settings,
    sessions: SessionFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.collect.BATCH", 2)
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        model = add_model(session, tenant, storage_key="tenants/t/models/model_1")
        clean = add_dataset(session, tenant, storage_key="tenants/t/datasets/dataset_1")
        job = add_job(session, tenant, model=model, clean=clean)
        job.checkpoint_key = f"jobs/{job.id}/checkpoint_1"
        job.checkpoint_sha256 = "0" * 64
        plot, of_nobody = (f"jobs/{job.id}/artifact_{number}" for number in (1, 2))
        session.add(
            Artifact(
                job_id=job.id,
                name="plot.png",
                kind=ArtifactKind.PLOT,
                media_type="image/png",
                bytes=7,
                sha256="0" * 64,
                storage_key=plot,
            )
        )
        deleted = add_model(session, tenant, storage_key="tenants/t/models/model_2")
        deleted.deleted_at = deleted.created_at
        emptied = add_dataset(session, tenant, storage_key="tenants/t/datasets/dataset_2")
        emptied.deleted_at = emptied.created_at
        kept = [model.storage_key, str(clean.storage_key), job.checkpoint_key, plot]
    orphans = [
        *("tenants/t/models/model_3", of_nobody, "ping/ping_1"),
        *(deleted.storage_key, str(emptied.storage_key)),
    ]
    for key in kept + orphans:
        _put(settings, key)
    _put(settings, "tenants/t/models/young", age=timedelta(0))
    _put(settings, "somebody_elses/file")
    store = make_store(settings)

    Collector(store, sessions, HOUR).run()

    assert [key for key in orphans if _has(store, key, tmp_path)] == []
    untouched = [*kept, "tenants/t/models/young", "somebody_elses/file"]
    assert [key for key in untouched if not _has(store, key, tmp_path)] == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
from service.storage.obstore_store import ObstoreStore

async def chunks():
    for _ in range(40):
        yield bytes(1 << 20)
    os.kill(os.getpid(), 9)

asyncio.run(ObstoreStore.local(Path(sys.argv[1])).put("tenants/t/models/model_1", chunks()))
"""


def test_what_a_killed_service_had_written_of_a_file_goes_when_it_is_old(
    settings: Settings, sessions: SessionFactory
) -> None:
    folder = Path(settings.storage_url.removeprefix("file:"))
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    (left,) = [path for path in folder.rglob("*") if path.is_file()]
    foreign = left.with_name("Notes#2")
    foreign.write_bytes(b"")
    collector = Collector(make_store(settings), sessions, HOUR)

    collector.run()
    assert left.exists()  # it may still be written to

    for path in (left, foreign):
        old = path.stat().st_mtime - 2 * HOUR.total_seconds()
        os.utime(path, (old, old))
    collector.run()
    assert [path for path in folder.rglob("*") if path.is_file()] == [foreign]


def test_unfinished_file_that_cannot_be_removed_keeps_no_other_from_going(
    settings: Settings, sessions: SessionFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        _put(settings, f"jobs/artifact_{number}#1")
    _put(settings, "jobs/artifact_4")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "artifact_1#1":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    store = make_store(settings)
    Collector(store, sessions, HOUR).run()
    folder = Path(settings.storage_url.removeprefix("file:"))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["artifact_1#1"]
    assert not _has(store, "jobs/artifact_4", tmp_path)


def test_folder_that_goes_while_unfinished_files_are_looked_for_keeps_none_from_going(
    settings: Settings, sessions: SessionFactory
) -> None:
    for name in ("ping_1#1", "a/ping_1#1", "b/ping_1#1"):
        _put(settings, f"ping/{name}")
    folder = Path(settings.storage_url.removeprefix("file:")) / "ping"

    def remove_folder() -> bool:
        shutil.rmtree(folder / "a", ignore_errors=True)
        return False

    collector = Collector(make_store(settings), sessions, HOUR, is_stopping=remove_folder)
    assert collector.remove_unfinished() == 2


def test_file_that_cannot_be_removed_keeps_no_other_from_going(
    settings: Settings, sessions: SessionFactory, tmp_path: Path
) -> None:
    keys = [f"jobs/artifact_{number}" for number in range(3)]
    for key in keys:
        _put(settings, key)
    store = FaultyStore(make_store(settings))
    store.cut("artifact_1")
    assert Collector(store, sessions, HOUR).remove_orphans() == 2
    assert [key for key in keys if _has(make_store(settings), key, tmp_path)] == [keys[1]]


def test_checkpoint_of_a_job_that_was_cancelled_while_it_waited_goes(
    settings: Settings, sessions: SessionFactory, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        job = add_job(session)
        job.checkpoint_key = f"jobs/{job.id}/checkpoint_1"
        job.checkpoint_sha256 = "0" * 64
        job.status = JobStatus.CANCELLED
        key = job.checkpoint_key
    _put(settings, key, age=timedelta(0))
    store = make_store(settings)
    Collector(store, sessions, HOUR).run()
    assert not _has(store, key, tmp_path)
    with transaction(sessions) as session:
        assert session.get_one(Job, job.id).checkpoint_key is None


@contextmanager
def _running(who: str, settings: Settings) -> Iterator[None]:
    """A worker, or the reconciler alone."""
    if who == "worker":
        process = WorkerProcess(settings, queue.make_producer(settings))
        process.start()
        try:
            yield
        finally:
            process.stop()
        return
    over = threading.Event()
    reconciler = threading.Thread(target=serve, args=(settings, over))
    reconciler.start()
    try:
        yield
    finally:
        over.set()
        reconciler.join()


@pytest.mark.parametrize("who", ["worker", "reconciler"])
def test_store_is_tidied_now_and_then(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr("worker.collect.COLLECT_SECONDS", 0.05)
    settings = settings.model_copy(update={"child_command": ("true",), "orphan_hours": 1.0})
    _put(settings, "jobs/artifact_1")
    store = make_store(settings)
    with _running(who, settings):
        deadline = time.monotonic() + 30
        while _has(store, "jobs/artifact_1", tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_round_ends_early_when_the_process_shall(
    settings: Settings, sessions: SessionFactory, tmp_path: Path
) -> None:
    keys = [f"jobs/artifact_{number}" for number in range(3)]
    for key in keys:
        _put(settings, key)
    _put(settings, "jobs/artifact_4#1")
    store = make_store(settings)
    Collector(store, sessions, HOUR, is_stopping=lambda: True).run()
    assert all(_has(store, key, tmp_path) for key in keys)
    folder = Path(settings.storage_url.removeprefix("file:"))
    assert (folder / "jobs" / "artifact_4#1").exists()
