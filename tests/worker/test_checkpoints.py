"""Checkpoints on their way to the store and, on another host, back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sanitizer import run_state
from service.db.session import transaction
from service.db.tables import Job, Model
from service.jobs import service as jobs
from tests.worker.conftest import Bench
from tests.worker.faulty_database import FaultyDatabase
from tests.worker.faulty_store import FaultyStore
from worker import checkpoints
from worker.folders import job_folder
from worker.outcomes import Failed, Lost, Released, Succeeded
from worker.patience import Patience


def _kept(bench: Bench, job_id: str) -> Callable[[], bool]:
    return lambda: bench.job(job_id).checkpoint_key is not None


def _stored(bench: Bench, job_id: str) -> list[Path]:
    folder = Path(bench.settings.storage_url.removeprefix("file:")) / "jobs" / job_id
    return sorted(folder.glob("checkpoint_*"))


def _result(bench: Bench, job_id: str, tmp_path: Path) -> bytes:
    with transaction(bench.sessions) as session:
        key = session.query(Model).filter(Model.source_job_id == job_id).one().storage_key
    bench.store.fetch(key, tmp_path / "result")
    return (tmp_path / "result").read_bytes()


def _release_half_way(bench: Bench, behaviour: str, **changes: object) -> str:
    """A job whose first attempt was given back by a worker that stopped."""
    job_id = bench.add_job()
    outcome = bench.run_until(
        job_id,
        behaviour,
        when=lambda: (bench.folder(job_id) / "work" / "attempts").exists(),
        then=bench.stopping.set,
        **changes,
    )
    assert isinstance(outcome, Released)
    bench.stopping.clear()
    return job_id


def test_supervisor_and_run_mean_the_same_file() -> None:
    assert checkpoints.FILE_NAME == run_state.FILE_NAME


def test_another_host_goes_on_from_the_checkpoint_in_the_store(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    elsewhere = tmp_path / "other-host"
    elsewhere.mkdir()
    outcome = bench.run(job_id, "checkpoint_then_succeed_when_resumed", work_dir=elsewhere)
    assert isinstance(outcome, Succeeded)
    assert _result(bench, job_id, tmp_path) == b"half way"


def test_checkpoint_goes_to_the_store_while_the_run_goes_on(bench: Bench) -> None:
    job_id = bench.add_job()
    stored: list[bytes] = []

    def look_and_stop() -> None:
        stored.extend(path.read_bytes() for path in _stored(bench, job_id))
        bench.stopping.set()

    bench.run_until(
        job_id,
        "checkpoint_then_succeed_when_resumed",
        when=_kept(bench, job_id),
        then=look_and_stop,
        checkpoint_store_seconds=0.1,
    )
    assert stored == [b"half way"]


def test_only_the_last_checkpoint_stays_in_the_store(bench: Bench) -> None:
    job_id = _release_half_way(bench, "checkpoint_twice_then_wait", checkpoint_store_seconds=0.1)
    (last,) = _stored(bench, job_id)
    assert last.read_bytes() == b"half way"


def test_job_that_is_over_leaves_no_checkpoint_in_the_store(bench: Bench) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    assert len(_stored(bench, job_id)) == 1
    bench.run(job_id, "checkpoint_then_succeed_when_resumed")
    assert _stored(bench, job_id) == []
    assert bench.job(job_id).checkpoint_key is None


def test_the_folder_of_the_attempt_before_is_newer_than_the_store(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    (bench.folder(job_id) / "work" / "checkpoint.pt").write_bytes(b"written later")
    bench.run(job_id, "checkpoint_then_succeed_when_resumed")
    assert _result(bench, job_id, tmp_path) == b"written later"


def test_folder_of_an_attempt_long_ago_is_older_than_the_store(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    (bench.folder(job_id) / "work" / "checkpoint.pt").write_bytes(b"outdated")
    elsewhere = tmp_path / "other-host"
    elsewhere.mkdir()
    claim = bench.claim(job_id)  # the second attempt ran elsewhere, without a word
    with transaction(bench.sessions) as session:
        jobs.release(session, claim, "It stopped.")
    bench.run(job_id, "checkpoint_then_succeed_when_resumed")
    assert _result(bench, job_id, tmp_path) == b"half way"


def test_run_begins_anew_where_the_store_has_lost_the_checkpoint(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    _stored(bench, job_id)[0].unlink()
    elsewhere = tmp_path / "other-host"
    elsewhere.mkdir()
    assert isinstance(bench.run(job_id, "succeed", work_dir=elsewhere), Succeeded)


def test_checkpoint_that_was_damaged_in_the_store_is_not_gone_on_from(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    _stored(bench, job_id)[0].write_bytes(b"half-way")
    claim = bench.claim(job_id)
    with job_folder(tmp_path, job_id, wait_seconds=0, check=bool) as folder:
        assert not checkpoints.bring(bench.store, folder, claim, Patience(0, bool))
        assert list(folder.work.iterdir()) == []


def test_checkpoint_that_could_not_be_had_once_is_looked_for_again(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    elsewhere = tmp_path / "other-host"
    elsewhere.mkdir()
    real = bench.store
    bench.store = store = FaultyStore(real)
    store.cut("/checkpoint_")
    crashed = bench.run(job_id, "crash", work_dir=elsewhere, lease_seconds=0.1)
    assert isinstance(crashed, Failed)
    assert store.refused
    bench.store = real
    outcome = bench.run(job_id, "checkpoint_then_succeed_when_resumed", work_dir=elsewhere)
    assert isinstance(outcome, Succeeded)
    assert _result(bench, job_id, tmp_path) == b"half way"


def test_worker_that_lost_its_job_leaves_no_checkpoint(bench: Bench) -> None:
    job_id = bench.add_job()

    def take_over() -> None:
        with transaction(bench.sessions) as session:
            session.get_one(Job, job_id).attempt += 1

    outcome = bench.run_until(
        job_id,
        "checkpoint_twice_then_wait",
        when=_kept(bench, job_id),
        then=take_over,
        checkpoint_store_seconds=0.1,
    )
    assert isinstance(outcome, Lost)
    assert len(_stored(bench, job_id)) == 1  # the one that was kept while the job was its own


def test_checkpoint_of_which_it_is_not_known_whether_it_is_kept_stays(
    bench: Bench, tmp_path: Path
) -> None:
    """The commit may have gone through: the row would name a file that is not there."""
    claim = bench.claim(bench.add_job())
    database = FaultyDatabase(bench.sessions)
    with job_folder(tmp_path, claim.job_id, wait_seconds=0, check=bool) as folder:
        keeper = checkpoints.CheckpointKeeper(bench.store, database.sessions, claim, folder, 0)
        (folder.work / checkpoints.FILE_NAME).write_bytes(b"half way")
        database.cut()
        keeper.keep()
        assert len(_stored(bench, claim.job_id)) == 1
        database.mend()
        keeper.keep()
    key = bench.job(claim.job_id).checkpoint_key
    assert key is not None
    assert key.rpartition("/")[2] in [path.name for path in _stored(bench, claim.job_id)]


def test_checkpoint_is_stored_once_and_that_of_the_attempt_before_goes(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    [before] = _stored(bench, job_id)
    claim = bench.claim(job_id)
    with job_folder(tmp_path, job_id, wait_seconds=0, check=bool) as folder:
        keeper = checkpoints.CheckpointKeeper(bench.store, bench.sessions, claim, folder, 0)
        (folder.work / checkpoints.FILE_NAME).write_bytes(b"nearly done")
        keeper.keep()
        [stored] = _stored(bench, job_id)
        assert stored != before
        keeper.keep()
        assert _stored(bench, job_id) == [stored]


def test_folder_that_a_checkpoint_was_brought_to_is_newer_than_the_store_from_then_on(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    claim = bench.claim(job_id)
    patience = Patience(0, bool)
    with job_folder(tmp_path, job_id, wait_seconds=0, check=bool) as folder:
        assert checkpoints.bring(bench.store, folder, claim, patience)
        again = replace(claim, attempt=claim.attempt + 1)
        assert not checkpoints.bring(bench.store, folder, again, patience)
        much_later = replace(claim, attempt=claim.attempt + 3)
        assert checkpoints.bring(bench.store, folder, much_later, patience)


def test_nothing_is_stored_where_it_is_switched_off(bench: Bench) -> None:
    job_id = _release_half_way(bench, "checkpoint_twice_then_wait", checkpoint_store_seconds=0)
    assert _stored(bench, job_id) == []


def test_link_left_by_a_run_is_not_written_through(bench: Bench, tmp_path: Path) -> None:
    job_id = _release_half_way(bench, "checkpoint_then_succeed_when_resumed")
    elsewhere = tmp_path / "other-host"
    (elsewhere / job_id / "work").mkdir(parents=True)
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (elsewhere / job_id / "work" / "checkpoint.pt").symlink_to(target)
    (elsewhere / job_id / "work" / "checkpoint.pt.part").symlink_to(target)
    bench.run(job_id, "checkpoint_then_succeed_when_resumed", work_dir=elsewhere)
    assert target.read_bytes() == b"precious"
