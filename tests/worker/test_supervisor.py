"""Jobs through the supervisor, with real child processes that behave well and badly."""

import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sanitizer.spec import Device
from service.db.base import utc_now
from service.db.session import transaction
from service.db.tables import Artifact, Job, JobEvent, JobMetric, JobStatus, Model
from service.jobs import service as jobs
from service.jobs.service import Claim
from tests.databases import every_database, on_postgresql
from tests.processes import is_alive
from tests.worker.conftest import Bench
from tests.worker.faulty_database import FaultyDatabase
from tests.worker.faulty_store import FaultyStore
from worker.devices import Slots
from worker.folders import job_folder
from worker.fonts import FontList
from worker.outcomes import Cancelled, Failed, Lost, Released, Succeeded


def _started(bench: Bench, job_id: str) -> bool:
    return (bench.folder(job_id) / "work" / "attempts").exists()


def _model_content(bench: Bench, job_id: str, tmp_path: Path) -> bytes:
    """What the child of a succeeded job has left as its model."""
    with transaction(bench.sessions) as session:
        model = session.query(Model).filter(Model.source_job_id == job_id).one()
    target = tmp_path / "fetched"
    bench.store.fetch(model.storage_key, target, sha256=model.sha256)
    return target.read_bytes()


def _stored_files(bench: Bench) -> int:
    folder = Path(bench.settings.storage_url.removeprefix("file:")) / "jobs"
    return len([path for path in folder.rglob("*") if path.is_file()])


# --- A good run ----------------------------------------------------------------------------------


@every_database
def test_good_run_makes_a_model_and_a_story(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.add_job()
    assert isinstance(bench.run(job_id, "succeed"), Succeeded)
    job = bench.job(job_id)
    assert (job.status, job.verdict, job.progress) == (JobStatus.SUCCEEDED, "allowed", 1.0)
    assert _model_content(bench, job_id, tmp_path) == b"suspect weights"
    with transaction(bench.sessions) as session:
        told = [event.type for event in session.query(JobEvent).order_by(JobEvent.sequence)]
        names = {artifact.name for artifact in session.query(Artifact)}
        figures = [(figure.name, figure.value) for figure in session.query(JobMetric)]
    assert told[:3] == ["status", "status", "stage"]
    assert told[-2:] == ["result", "status"]
    assert names == {"model.pt", "report.json"}
    assert figures == [("loss", 0.5)]
    assert bench.woken


def test_folder_of_an_ended_job_is_removed(bench: Bench) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "succeed")
    assert not bench.folder(job_id).exists()


def test_child_sees_no_address_and_no_secret(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANITIZER_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    job_id = bench.add_job()
    bench.run(job_id, "show_environment")
    seen = json.loads(_model_content(bench, job_id, tmp_path))
    assert set(seen) <= {
        *("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_CTYPE", "HOME", "TMPDIR"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    }
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["HOME"].startswith(str(bench.folder(job_id)))


def test_child_is_told_of_its_copy_of_the_list_of_fonts(bench: Bench, tmp_path: Path) -> None:
    fonts = FontList()
    thread = fonts.begin()
    assert thread is not None
    thread.join(60)
    job_id = bench.add_job()
    replace(bench.supervisor("show_environment"), fonts=fonts).run(bench.claim(job_id))
    seen = json.loads(_model_content(bench, job_id, tmp_path))
    assert seen["MPLCONFIGDIR"] == str(bench.folder(job_id) / "home" / "matplotlib")


def test_job_for_more_devices_than_the_worker_has_fails_for_good(bench: Bench) -> None:
    job_id = bench.add_job(devices=3)
    bench.run(job_id, "succeed", slots=2)
    job = bench.job(job_id)
    assert (job.status, job.error_code) == ("failed", "not_enough_devices")
    assert job.error_data == {"wanted": 3, "available": 2}
    assert "Ask for 2 at most" in str(job.error_message)


def test_job_that_shares_devices_gets_the_threads_of_its_slots(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = bench.add_job(devices=2)
    bench.run(job_id, "show_spec", slots=2, threads_per_job=3)
    spec = json.loads(_model_content(bench, job_id, tmp_path))
    assert (spec["devices"], spec["threads"]) == (2, 6)


def test_each_process_of_a_job_that_shares_devices_has_the_threads_of_one(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = bench.add_job(devices=2)
    bench.run(job_id, "show_environment", slots=2, threads_per_job=3)
    seen = json.loads(_model_content(bench, job_id, tmp_path))
    assert seen["OMP_NUM_THREADS"] == "3"


def test_child_is_asked_for_what_the_row_says(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "show_spec")
    spec = json.loads(_model_content(bench, job_id, tmp_path))
    assert spec["model"]["path"] == str(bench.folder(job_id) / "input" / "model")
    assert spec["model"]["filename"] == "suspect.pt"
    assert (spec["method"]["name"], spec["device"], spec["threads"]) == ("argd", "cpu", 1)


def test_garbage_among_the_events_is_skipped(bench: Bench) -> None:
    job_id = bench.add_job()
    assert isinstance(bench.run(job_id, "talk_garbage"), Succeeded)


def test_flood_of_events_loses_no_figure_and_few_rows_are_progress(bench: Bench) -> None:
    job_id = bench.add_job()
    assert isinstance(bench.run(job_id, "flood"), Succeeded)
    with transaction(bench.sessions) as session:
        assert session.query(JobMetric).count() == 6_001
        progress = session.query(JobEvent).filter(JobEvent.type == "progress").count()
        sequences = [row.sequence for row in session.query(JobEvent.sequence)]
    assert progress < 250
    assert sorted(sequences) == list(range(1, len(sequences) + 1))


def test_descendant_that_is_left_behind_is_killed(bench: Bench) -> None:
    pids: list[int] = []
    job_id = bench.add_job()
    note = bench.folder(job_id) / "home" / "descendant"

    def look() -> bool:
        if note.exists() and note.read_text():
            pids.append(int(note.read_text()))
        return bool(pids)

    assert isinstance(bench.run_until(job_id, "leave_a_descendant", look, bool), Succeeded)
    assert not is_alive(pids[0])


def test_child_that_lingers_after_its_result_does_not_spoil_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.LAST_WORD_SECONDS", 0.5)
    job_id = bench.add_job()
    assert isinstance(bench.run(job_id, "linger_after_the_result"), Succeeded)


# --- Faults --------------------------------------------------------------------------------------


def test_fault_of_the_input_fails_the_job(bench: Bench) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "blame_the_input")
    job = bench.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "empty_class")
    assert not bench.folder(job_id).exists()


@every_database
def test_fault_of_the_machine_queues_the_job_again(bench: Bench) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "blame_the_machine")
    job = bench.job(job_id)
    assert (job.status, job.attempt, job.error_code) == (JobStatus.QUEUED, 1, None)
    assert bench.folder(job_id).exists()


def test_job_that_the_machine_failed_waits_as_the_settings_say(bench: Bench) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "blame_the_machine", retry_seconds=600.0)
    with transaction(bench.sessions) as session:
        assert jobs.claim(session, job_id, "w2", 60) is None


def test_child_that_ends_without_a_word_is_a_fault_of_the_machine(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "crash")
    job = bench.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "internal_error")
    assert job.error_data == {"exit_code": 7, "stderr": "Traceback: it broke\n"}


def test_child_that_refuses_its_input_without_a_word_is_not_tried_again(bench: Bench) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "refuse_without_a_word")
    job = bench.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "unsupported_input")
    assert "its error could not be read" in str(job.error_message)


def test_child_imports_nothing_from_its_working_folder(bench: Bench) -> None:
    job_id = bench.add_job()
    home = bench.folder(job_id) / "home"
    home.mkdir(parents=True)
    (home / "argparse.py").write_text("raise SystemExit('a stray file was imported')")
    bench.run(job_id, "succeed", child_command=())
    assert bench.job(job_id).error_code == "unreadable_checkpoint"


def test_killed_child_is_named_with_its_signal_and_a_hint(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "be_killed")
    job = bench.job(job_id)
    assert job.error_code == "child_killed"
    assert job.error_message == (
        "The run was ended by SIGKILL. Most often the memory ran out: lower the batch size, or ask "
        "the operator for more."
    )


def test_program_that_is_not_there_is_a_fault_of_the_machine(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "succeed", child_command=("/nowhere/python",))
    job = bench.job(job_id)
    assert job.error_code == "internal_error"
    assert job.error_data is not None
    assert "cannot be started" in job.error_data["stderr"]


def test_memory_of_the_child_is_limited(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "eat_memory", job_memory_bytes=1 << 30)
    assert bench.job(job_id).error_code == "out_of_memory"


def test_memory_of_a_job_for_the_cpu_is_limited_on_a_worker_with_cuda(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1, device="cpu")
    supervisor = bench.supervisor("eat_memory", job_memory_bytes=1 << 30, device="cuda")
    replace(supervisor, slots=Slots(1, Device.CUDA, ["0"])).run(bench.claim(job_id))
    assert bench.job(job_id).error_code == "out_of_memory"


def test_size_of_the_files_of_the_child_is_limited(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.run(job_id, "eat_disk", job_file_bytes=1 << 20)
    assert bench.job(job_id).error_code == "out_of_disk"


def test_run_that_takes_too_long_is_stopped_and_not_tried_again(bench: Bench) -> None:
    job_id = bench.add_job()
    bench.run(job_id, "wait", job_timeout_seconds=1.0)
    job = bench.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "timeout")
    assert job.error_data == {"limit_seconds": 1.0}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("name_other_bytes", "not what it was"),
        ("name_a_link", "cannot be read"),
        ("name_a_pipe", "report cannot be read: not a regular file"),
        ("name_a_file_twice", "names a file twice"),
        ("name_a_file_elsewhere", r"named '\.\./spec\.json'"),
        ("name_no_model", "one model"),
        ("write_a_bad_report", "report is not valid"),
    ],
)
def test_result_that_is_none_is_refused_and_leaves_nothing_in_the_store(
    bench: Bench, behaviour: str, reason: str
) -> None:
    job_id = bench.add_job(max_attempts=1)
    outcome = bench.run(job_id, behaviour)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "invalid_result"
    assert re.search(reason, outcome.error.message)
    assert bench.job(job_id).status == JobStatus.FAILED
    assert _stored_files(bench) == 0


@on_postgresql
@pytest.mark.parametrize("with_the_end", [False, True])
def test_story_that_the_database_refuses_costs_no_result(bench: Bench, with_the_end: bool) -> None:
    job_id = bench.add_job()
    if with_the_end:  # for want of a database no event could be written before
        database = FaultyDatabase(bench.sessions)
        database.cut(lambda: (bench.folder(job_id) / "out").exists() and _stored_files(bench) < 2)
        bench.worker_sessions = database.sessions
    assert isinstance(bench.run(job_id, "tell_of_an_epoch_that_no_column_holds"), Succeeded)
    assert bench.job(job_id).status == JobStatus.SUCCEEDED
    assert _stored_files(bench) == 2


def test_result_that_the_database_refuses_twice_fails_the_attempt(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    database = FaultyDatabase(bench.sessions)
    database.refuse(Artifact)
    bench.worker_sessions = database.sessions
    outcome = bench.run(job_id, "succeed")
    assert isinstance(outcome, Failed)
    job = bench.job(job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "internal_error")
    assert database.refused == 2
    assert _stored_files(bench) == 0


@every_database
def test_characters_that_no_column_holds_are_replaced(bench: Bench) -> None:
    job_id = bench.add_job()
    assert isinstance(bench.run(job_id, "name_a_media_type_that_no_column_holds"), Succeeded)


@pytest.mark.parametrize(
    ("is_deleted", "status"), [(True, JobStatus.FAILED), (False, JobStatus.QUEUED)]
)
def test_file_that_is_not_in_the_store_is_the_fault_of_whoever_deleted_it(
    bench: Bench, is_deleted: bool, status: JobStatus
) -> None:
    """Of the machine, if nobody did: another worker may see it."""
    job_id = bench.add_job()
    with transaction(bench.sessions) as session:
        model = session.query(Model).one()
        bench.store.delete(model.storage_key)
        model.deleted_at = utc_now() if is_deleted else None
    outcome = bench.run(job_id, "succeed")
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "file_gone"
    assert bench.job(job_id).status == status


def test_file_that_changed_in_the_store_is_not_run(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    with transaction(bench.sessions) as session:
        session.query(Model).one().sha256 = "0" * 64
    bench.run(job_id, "succeed")
    assert bench.job(job_id).error_code == "stored_file_damaged"


def test_reference_outside_the_roots_is_refused_by_the_worker_too(bench: Bench) -> None:
    job_id = bench.add_job(reference="file:///etc/hostname", max_attempts=1)
    bench.run(job_id, "succeed")
    assert bench.job(job_id).error_code == "reference_refused"


def test_share_that_is_not_mounted_here_may_be_on_another_worker(
    bench: Bench, tmp_path: Path
) -> None:
    job_id = bench.add_job(reference=f"file://{tmp_path}/data/clean.npz")
    bench.run(job_id, "succeed", reference_roots=(tmp_path / "data",))
    assert bench.job(job_id).status == JobStatus.QUEUED


def test_reference_inside_a_root_is_used_where_it_lies(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "clean.npz").write_bytes(b"images")
    job_id = bench.add_job(reference=f"file://{tmp_path}/data/clean.npz")
    bench.run(job_id, "show_spec", reference_roots=(tmp_path / "data",))
    spec = json.loads(_model_content(bench, job_id, tmp_path))
    assert spec["clean_data"]["path"] == str(tmp_path / "data" / "clean.npz")


# --- A store that is away ------------------------------------------------------------------------


def test_store_that_is_away_for_a_while_costs_no_try(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.patience.PAUSE_SECONDS", 0.05)
    job_id = bench.add_job()
    store = FaultyStore(bench.store)
    store.cut_for(tries=2)
    outcome = replace(bench.supervisor("succeed"), store=store).run(bench.claim(job_id))
    assert isinstance(outcome, Succeeded)
    assert len(store.refused) == 2 * 4  # model, data set; model, report
    assert _model_content(bench, job_id, tmp_path) == b"suspect weights"


@pytest.mark.parametrize("part", ["models/", "/artifact_"])
def test_store_is_not_waited_for_once_the_job_is_cancelled(bench: Bench, part: str) -> None:
    job_id = bench.add_job()
    bench.store = store = FaultyStore(bench.store)
    store.cut(part)
    outcome = bench.run_until(
        job_id, "succeed", lambda: bool(store.refused), lambda: _cancel(bench, job_id)
    )
    assert isinstance(outcome, Cancelled)


def test_stopping_worker_tries_for_a_while_to_store_a_result(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.patience.PAUSE_SECONDS", 0.5)
    job_id = bench.add_job()
    bench.store = store = FaultyStore(bench.store)
    store.cut("/artifact_")

    def stop_and_mend() -> None:
        bench.stopping.set()
        tries = len(store.refused)
        while len(store.refused) == tries:  # it has tried again since
            time.sleep(0.05)
        store.cut_for(0)

    outcome = bench.run_until(job_id, "succeed", lambda: bool(store.refused), stop_and_mend)
    assert isinstance(outcome, Succeeded)
    assert _model_content(bench, job_id, tmp_path) == b"suspect weights"


def test_stopping_worker_that_cannot_store_a_result_gives_its_job_back_with_its_checkpoint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.LAST_TRIES_SECONDS", 0.3)
    monkeypatch.setattr("worker.patience.PAUSE_SECONDS", 0.1)
    job_id = bench.add_job()
    bench.store = store = FaultyStore(bench.store)
    store.cut("jobs/")  # checkpoints, too

    def stop_and_mend_in_part() -> None:
        store.cut("/artifact_")
        bench.stopping.set()

    outcome = bench.run_until(
        job_id,
        "checkpoint_then_succeed",
        lambda: any("/artifact_" in key for key in store.refused),
        stop_and_mend_in_part,
        checkpoint_store_seconds=600.0,
    )
    assert isinstance(outcome, Released)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert job.checkpoint_key is not None
    store.fetch(job.checkpoint_key, tmp_path / "kept", sha256=job.checkpoint_sha256)
    assert (tmp_path / "kept").read_bytes() == b"nearly done"


def test_store_that_stays_away_is_a_fault_of_the_machine(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    bench.store = store = FaultyStore(bench.store)
    store.cut("models/")
    bench.run(job_id, "succeed", lease_seconds=0.1)
    assert bench.job(job_id).error_code == "store_unavailable"


# --- Stopping ------------------------------------------------------------------------------------


def _cancel(bench: Bench, job_id: str) -> None:
    with transaction(bench.sessions) as session:
        jobs.request_cancel(session, job_id)


@every_database
def test_cancelled_job_stops_its_child(bench: Bench) -> None:
    job_id = bench.add_job()
    outcome = bench.run_until(
        job_id, "wait", lambda: _started(bench, job_id), lambda: _cancel(bench, job_id)
    )
    assert isinstance(outcome, Cancelled)
    assert bench.job(job_id).status == JobStatus.CANCELLED
    assert not bench.folder(job_id).exists()


def test_child_that_ignores_the_request_to_stop_is_killed(bench: Bench) -> None:
    job_id = bench.add_job()
    outcome = bench.run_until(
        job_id, "ignore_sigterm", lambda: _started(bench, job_id), lambda: _cancel(bench, job_id)
    )
    assert isinstance(outcome, Cancelled)


def test_result_that_comes_while_it_is_cancelled_is_kept(bench: Bench) -> None:
    job_id = bench.add_job()
    outcome = bench.run_until(
        job_id,
        "finish_when_asked_to_stop",
        lambda: _started(bench, job_id),
        lambda: _cancel(bench, job_id),
    )
    assert isinstance(outcome, Succeeded)
    assert bench.job(job_id).status == JobStatus.SUCCEEDED


def test_child_that_cannot_be_ended_keeps_its_slot_but_not_its_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for a disk in the kernel does not notice that it is killed."""
    for name, seconds in (("REAP", 0.2), ("JOIN", 0.1)):
        monkeypatch.setattr(f"worker.child.{name}_SECONDS", seconds)
    monkeypatch.setattr("worker.supervisor.LAST_WORD_SECONDS", 0.1)
    monkeypatch.setattr("os.killpg", lambda *_: None)
    job_id = bench.add_job()
    supervisor = bench.supervisor("succeed_once_allowed")
    monkeypatch.setattr(bench, "supervisor", lambda *_: supervisor)
    outcome = bench.run_until(
        job_id, "", lambda: _started(bench, job_id), lambda: _cancel(bench, job_id)
    )
    assert isinstance(outcome, Cancelled)
    assert bench.job(job_id).status == JobStatus.CANCELLED

    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError), supervisor.slots.taken(check=give_up):
        pass
    (bench.folder(job_id) / "work" / "go").touch()  # now it ends
    with supervisor.slots.taken():
        pass


def test_job_that_is_cancelled_before_its_child_starts_starts_none(bench: Bench) -> None:
    job_id = bench.add_job()
    claim = bench.claim(job_id)
    _cancel(bench, job_id)
    supervisor = bench.supervisor("wait")
    assert isinstance(supervisor.run(claim), Cancelled)
    assert bench.job(job_id).status == JobStatus.CANCELLED


@pytest.mark.parametrize("what", ["folder", "slot"])
def test_job_that_waits_on_its_worker_can_be_cancelled(bench: Bench, what: str) -> None:
    """For an earlier attempt to leave its folder, or for others to leave enough devices."""
    job_id = bench.add_job()
    supervisor = bench.supervisor("succeed", lease_seconds=100.0)
    claim = bench.claim(job_id)
    _cancel(bench, job_id)
    with ExitStack() as others:
        if what == "slot":
            others.enter_context(supervisor.slots.taken())
        else:
            others.enter_context(
                job_folder(bench.settings.work_dir, job_id, wait_seconds=0, check=bool)
            )
        run = ThreadPoolExecutor(1).submit(supervisor.run, claim)
        assert isinstance(run.result(timeout=60), Cancelled)
    assert bench.job(job_id).status == JobStatus.CANCELLED


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who has a file open")
def test_no_other_attempt_gets_the_folder_while_the_child_lives(bench: Bench) -> None:
    """Its worker may be killed, and let go of the folder before the child has ended."""
    job_id = bench.add_job()
    lock = str(bench.folder(job_id) / "lock")
    holders: list[str] = []

    def look_and_stop() -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another user's
                if lock in [os.readlink(each) for each in (entry / "fd").iterdir()]:
                    holders.append(entry.name)
        bench.stopping.set()

    bench.run_until(job_id, "wait", lambda: _started(bench, job_id), look_and_stop)
    assert [pid for pid in holders if pid != str(os.getpid())]


def test_stopping_worker_gives_its_job_back(bench: Bench) -> None:
    job_id = bench.add_job(max_attempts=1)
    outcome = bench.run_until(job_id, "wait", lambda: _started(bench, job_id), bench.stopping.set)
    assert isinstance(outcome, Released)
    job = bench.job(job_id)
    assert (job.status, job.worker_id, job.max_attempts) == (JobStatus.QUEUED, None, 2)


def test_next_attempt_finds_the_checkpoint_of_the_one_before(bench: Bench) -> None:
    job_id = bench.add_job()
    behaviour = "wait_then_succeed_when_resumed"
    bench.run_until(job_id, behaviour, lambda: _started(bench, job_id), bench.stopping.set)
    bench.stopping.clear()
    assert isinstance(bench.run(job_id, behaviour), Succeeded)
    assert bench.job(job_id).attempt == 2


def _take_over(bench: Bench, job_id: str) -> Claim:
    """As if this worker had been silent for too long and another one had claimed the job."""
    with transaction(bench.sessions) as session:
        session.query(Job).filter_by(id=job_id).update({"lease_expires_at": utc_now()})
    with transaction(bench.sessions) as session:
        jobs.take_back_expired(session)
    return bench.claim(job_id)


@every_database
def test_worker_that_lost_its_lease_kills_the_child_and_writes_nothing(bench: Bench) -> None:
    job_id = bench.add_job()
    taken: list[Claim] = []
    outcome = bench.run_until(
        job_id,
        "ignore_sigterm",
        lambda: _started(bench, job_id),
        lambda: taken.append(_take_over(bench, job_id)),
        heartbeat_seconds=1.0,
    )
    assert isinstance(outcome, Lost)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.RUNNING, taken[0].attempt)


def test_result_of_a_worker_that_lost_its_lease_does_not_stay_in_the_store(bench: Bench) -> None:
    job_id = bench.add_job()
    claim = bench.claim(job_id)
    _take_over(bench, job_id)
    late = bench.supervisor("succeed", heartbeat_seconds=60.0)
    assert isinstance(late.run(claim), Lost)
    assert _stored_files(bench) == 0


def test_result_whose_commit_went_unanswered_keeps_its_files(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.add_job()
    database = FaultyDatabase(bench.sessions)
    database.lose_the_answer(Artifact)
    bench.worker_sessions = database.sessions
    assert isinstance(bench.run(job_id, "succeed"), Succeeded)
    assert _model_content(bench, job_id, tmp_path) == b"suspect weights"
    assert _stored_files(bench) == 2
    assert not bench.folder(job_id).exists()


def test_result_that_cannot_be_written_leaves_its_files_to_the_collector(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a commit went through is not known while the database is away."""
    monkeypatch.setattr("worker.supervisor.SETTLE_SECONDS", 0.05)
    job_id = bench.add_job()
    database = FaultyDatabase(bench.sessions)
    database.cut(lambda: _stored_files(bench) == 2)
    bench.worker_sessions = database.sessions
    assert isinstance(bench.run(job_id, "succeed", lease_seconds=0.1), Lost)
    assert _stored_files(bench) == 2


def test_events_that_the_database_missed_are_written_with_the_end(bench: Bench) -> None:
    job_id = bench.add_job()
    database = FaultyDatabase(bench.sessions)
    database.cut(lambda: (bench.folder(job_id) / "out").exists() and _stored_files(bench) < 2)
    bench.worker_sessions = database.sessions
    assert isinstance(bench.run(job_id, "succeed"), Succeeded)
    assert database.refused
    with transaction(bench.sessions) as session:
        told = [event.type for event in session.query(JobEvent).order_by(JobEvent.sequence)]
        assert session.query(JobMetric).count() == 1
    assert told == [
        *("status", "status", "stage", "progress", "stage", "metric", "progress"),
        *("result", "status"),
    ]


def test_stopping_worker_tries_for_a_while_to_give_its_job_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.SETTLE_SECONDS", 0.1)
    job_id = bench.add_job()
    database = FaultyDatabase(bench.sessions)

    def cut_and_stop() -> None:
        until = time.monotonic() + 1
        database.cut(lambda: time.monotonic() < until)
        bench.stopping.set()

    bench.worker_sessions = database.sessions
    outcome = bench.run_until(job_id, "wait", lambda: _started(bench, job_id), cut_and_stop)
    assert isinstance(outcome, Released)
    assert database.refused
    assert bench.job(job_id).status == JobStatus.QUEUED


def test_stopping_worker_does_not_wait_for_long_for_a_database_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.supervisor.SETTLE_SECONDS", 0.05)
    monkeypatch.setattr("worker.supervisor.LAST_TRIES_SECONDS", 0.3)
    job_id = bench.add_job()
    database = FaultyDatabase(bench.sessions)
    bench.worker_sessions = database.sessions

    def cut_and_stop() -> None:
        database.cut()
        bench.stopping.set()

    outcome = bench.run_until(
        job_id, "wait", lambda: _started(bench, job_id), cut_and_stop, lease_seconds=20.0
    )  # within a minute: five leases are more
    assert isinstance(outcome, Lost)
    assert bench.folder(job_id).exists()  # it is not over


def test_folder_that_is_in_use_makes_the_job_wait_for_another_try(bench: Bench) -> None:
    job_id = bench.add_job()
    with job_folder(bench.settings.work_dir, job_id, wait_seconds=0, check=bool):
        outcome = bench.run(job_id, "succeed", lease_seconds=0.3)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "work_folder_busy"
    assert bench.job(job_id).status == JobStatus.QUEUED
