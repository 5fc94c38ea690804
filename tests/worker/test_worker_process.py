"""Real Celery worker processes, over a real broker and both databases."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from sanitizer.spec import Device
from service import queue
from service.cli.stack import environment_of
from service.db.session import transaction
from service.db.tables import JobStatus, WorkerRecord
from service.jobs import service as jobs
from service.settings import Settings
from tests.databases import every_database
from tests.worker.conftest import ROOT, Bench, child_command
from tests.worker.faulty_network import FaultyNetwork
from worker.periodic import Periodic
from worker.process import WorkerProcess

WAIT_SECONDS = 90.0
CELERY = (sys.executable, "-m", "celery")
CELERY_WITH_CHILDREN_THAT_CANNOT_BE_ENDED = (
    sys.executable,
    "-c",
    "import os, worker.child, worker.supervisor; from celery.__main__ import main; "
    "os.killpg = lambda *_: None; worker.child.REAP_SECONDS = worker.child.JOIN_SECONDS = 0.1; "
    "worker.supervisor.LAST_WORD_SECONDS = 0.1; main()",
)


class Workers:
    """Starts workers, and ends those that still run after the test."""

    def __init__(self, settings: Settings, logs: Path) -> None:
        self._settings = settings
        self._logs = logs
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, behaviour: str, *, celery: Sequence[str] = CELERY, **changes: object
    ) -> subprocess.Popen[bytes]:
        settings = self._settings.model_copy(
            update={"child_command": child_command(behaviour), **changes}
        )
        settings.model_fields_set.update(
            {"child_command", "heartbeat_seconds", "lease_seconds", *changes}
        )
        log = self._logs / f"worker{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*celery, "-A", "worker.app", "worker", "-l", "WARNING"],
                cwd=ROOT,
                env={**os.environ, **environment_of(settings), "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not come to hold; the logs:\n{self.read_logs()}")
            time.sleep(0.05)

    def read_logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._logs.glob("worker*.log")))


@pytest.fixture
def workers(bench: Bench, tmp_path: Path) -> Iterator[Workers]:
    settings = bench.settings.model_copy(
        update={
            "heartbeat_seconds": 0.3,
            "lease_seconds": 2.0,
            "reconcile_seconds": 0.5,
            "cancel_grace_seconds": 2.0,
        }
    )
    settings.model_fields_set.update({"reconcile_seconds", "cancel_grace_seconds"})
    workers = Workers(settings, tmp_path)
    yield workers
    for process in workers.processes:
        process.kill()
        process.wait()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _has_status(bench: Bench, job_id: str, status: JobStatus) -> bool:
    return bench.job(job_id).status == status


def _attempts(bench: Bench, job_id: str) -> int:
    note = bench.folder(job_id) / "work" / "attempts"
    return len(note.read_text()) if note.exists() else 0


@every_database
def test_worker_runs_a_job_that_was_sent(bench: Bench, workers: Workers) -> None:
    job_id = bench.add_job()
    queue.send_job(queue.make_producer(bench.settings), job_id)
    workers.start("succeed")
    workers.wait_until(lambda: _has_status(bench, job_id, JobStatus.SUCCEEDED))
    assert bench.job(job_id).attempt == 1


@every_database
def test_job_of_a_worker_that_is_killed_is_resumed_by_another(
    bench: Bench, workers: Workers
) -> None:
    job_id = bench.add_job()
    queue.send_job(queue.make_producer(bench.settings), job_id)
    first = workers.start("wait_then_succeed_when_resumed")
    workers.wait_until(lambda: _attempts(bench, job_id) == 1)
    assert _has_status(bench, job_id, JobStatus.RUNNING)
    first.kill()
    first.wait()
    workers.start("wait_then_succeed_when_resumed")
    workers.wait_until(lambda: _has_status(bench, job_id, JobStatus.SUCCEEDED))
    assert bench.job(job_id).attempt == 2


def test_job_whose_message_was_never_sent_runs_all_the_same(bench: Bench, workers: Workers) -> None:
    job_id = bench.add_job()
    workers.start("succeed")
    workers.wait_until(lambda: _has_status(bench, job_id, JobStatus.SUCCEEDED))


def test_worker_that_is_stopped_gives_its_job_back_and_signs_off(
    bench: Bench, workers: Workers
) -> None:
    job_id = bench.add_job(max_attempts=1)
    queue.send_job(queue.make_producer(bench.settings), job_id)
    process = workers.start("wait")
    workers.wait_until(lambda: _attempts(bench, job_id) == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_SECONDS) == 0
    assert _has_status(bench, job_id, JobStatus.QUEUED)
    with transaction(bench.sessions) as session:
        assert session.query(WorkerRecord).count() == 0


def test_busy_worker_leaves_the_next_message_to_others(bench: Bench, workers: Workers) -> None:
    producer = queue.make_producer(bench.settings)
    runs, waits = bench.add_job(), bench.add_job()
    with transaction(bench.sessions) as session:
        for job_id in (runs, waits):
            jobs.mark_sent(session, job_id)
    queue.send_job(producer, runs)
    workers.start("wait")
    workers.wait_until(lambda: _attempts(bench, runs) == 1)
    queue.send_job(producer, waits)
    with transaction(bench.sessions) as session:
        beats = session.query(WorkerRecord).one().heartbeat_at

    def beats_on() -> bool:
        with transaction(bench.sessions) as session:
            return session.query(WorkerRecord).one().heartbeat_at > beats + timedelta(seconds=1)

    workers.wait_until(beats_on)
    assert queue.count_messages(producer)[None] == 1


def test_worker_removes_folders_of_jobs_that_ended_elsewhere(bench: Bench) -> None:
    over, waiting = bench.add_job(), bench.add_job()
    with transaction(bench.sessions) as session:
        jobs.request_cancel(session, over)
    for job_id in (over, waiting):
        bench.folder(job_id).mkdir()
    process = WorkerProcess(bench.settings, queue.make_producer(bench.settings))
    process._reconcile()
    process.stop()
    assert (bench.folder(over).exists(), bench.folder(waiting).exists()) == (False, True)


def test_worker_without_cuda_leaves_jobs_that_ask_for_it_in_their_queue(
    bench: Bench, workers: Workers
) -> None:
    producer = queue.make_producer(bench.settings)
    for_cuda, for_cpu = bench.add_job(device="cuda"), bench.add_job(device="cpu")
    with transaction(bench.sessions) as session:
        for job_id in (for_cuda, for_cpu):
            jobs.mark_sent(session, job_id)
    queue.send_job(producer, for_cuda, "cuda")
    queue.send_job(producer, for_cpu, "cpu")
    workers.start("succeed")
    workers.wait_until(lambda: _has_status(bench, for_cpu, JobStatus.SUCCEEDED))
    assert _has_status(bench, for_cuda, JobStatus.QUEUED)
    assert queue.count_messages(producer)[Device.CUDA] == 1


def test_job_for_which_no_slot_is_free_is_left_to_other_workers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.process.SLOT_SECONDS", 0.1)
    job_id = bench.add_job()
    with transaction(bench.sessions) as session:
        jobs.mark_sent(session, job_id)
    settings = bench.settings.model_copy(update={"child_command": child_command("succeed")})
    process = WorkerProcess(settings, queue.make_producer(settings))
    with process._slots.taken():  # as by a job that shares several devices
        process.run(job_id)
    job = bench.job(job_id)
    assert (job.status, job.attempt, job.sent_at) == (JobStatus.QUEUED, 0, None)
    process.run(job_id)
    process.stop()
    assert bench.job(job_id).status == JobStatus.SUCCEEDED


def test_worker_whose_slots_are_all_kept_leaves_messages_to_others_until_one_is_free(
    bench: Bench, workers: Workers
) -> None:
    producer = queue.make_producer(bench.settings)

    def report() -> WorkerRecord:
        with transaction(bench.sessions) as session:
            return session.query(WorkerRecord).one()

    def await_beat() -> None:
        before = report().heartbeat_at
        workers.wait_until(lambda: report().heartbeat_at > before)

    def allow(job_id: str) -> None:
        workers.wait_until(lambda: _attempts(bench, job_id) == 1)
        (bench.folder(job_id) / "work" / "go").touch()

    stuck = bench.add_job()
    queue.send_job(producer, stuck)
    workers.start("succeed_once_allowed", celery=CELERY_WITH_CHILDREN_THAT_CANNOT_BE_ENDED)
    workers.wait_until(lambda: _attempts(bench, stuck) == 1)
    with transaction(bench.sessions) as session:
        jobs.request_cancel(session, stuck)
    workers.wait_until(lambda: report().slots == 0)
    workers.wait_until(lambda: "keep all slots" in workers.read_logs())

    waits = bench.add_job()
    with transaction(bench.sessions) as session:
        jobs.mark_sent(session, waits)
    queue.send_job(producer, waits)
    for _ in range(4):
        await_beat()
        assert sum(queue.count_messages(producer).values()) == 1
    assert workers.read_logs().count("keep all slots") == 1

    (bench.folder(stuck) / "work" / "go").touch()  # now it ends
    allow(waits)
    workers.wait_until(lambda: _has_status(bench, waits, JobStatus.SUCCEEDED))
    workers.wait_until(lambda: report().slots == 1)


def test_job_that_needs_more_slots_than_are_not_kept_is_left_to_other_workers(
    bench: Bench,
) -> None:
    job_id = bench.add_job(devices=2)
    with transaction(bench.sessions) as session:
        jobs.mark_sent(session, job_id)
    settings = bench.settings.model_copy(
        update={"child_command": child_command("succeed"), "slots": 2}
    )
    process = WorkerProcess(settings, queue.make_producer(settings))
    ended = threading.Event()
    with process._slots.taken() as slot:
        process._slots.keep(slot, until=ended.wait)
    process.run(job_id)
    job = bench.job(job_id)
    assert (job.status, job.attempt, job.sent_at) == (JobStatus.QUEUED, 0, None)
    ended.set()
    _wait_until(lambda: process._slots.usable == 2)
    process.run(job_id)
    process.stop()
    assert bench.job(job_id).status == JobStatus.SUCCEEDED


def test_worker_signs_off_before_it_waits_for_what_it_tidies(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"child_command": ("true",)})
    process = WorkerProcess(settings, queue.make_producer(settings))
    goes_on = threading.Event()
    begun = threading.Event()

    def tidy() -> None:
        begun.set()
        goes_on.wait(30)

    process._threads = [Periodic("tidies", tidy, 60)]
    process.start()
    stop = threading.Thread(target=process.stop)

    def reports() -> bool:
        with transaction(bench.sessions) as session:
            return session.query(WorkerRecord).count() == 1

    try:
        assert begun.wait(WAIT_SECONDS)
        _wait_until(reports)
        stop.start()
        _wait_until(lambda: not reports())
        assert stop.is_alive()
    finally:
        goes_on.set()
    stop.join(10)


def test_worker_that_takes_only_what_asks_for_it_leaves_jobs_that_name_no_device(
    bench: Bench, workers: Workers
) -> None:
    producer = queue.make_producer(bench.settings)
    for_any, for_cpu = bench.add_job(), bench.add_job(device="cpu")
    with transaction(bench.sessions) as session:
        for job_id in (for_any, for_cpu):
            jobs.mark_sent(session, job_id)
    queue.send_job(producer, for_any)
    queue.send_job(producer, for_cpu, "cpu")
    workers.start("succeed", only_asked_for=True)
    workers.wait_until(lambda: _has_status(bench, for_cpu, JobStatus.SUCCEEDED))
    assert _has_status(bench, for_any, JobStatus.QUEUED)
    assert queue.count_messages(producer)[None] == 1


def test_worker_for_cuda_ends_at_once_where_torch_cannot_use_it(workers: Workers) -> None:
    process = workers.start("succeed", device="cuda", child_command=())
    assert process.wait(WAIT_SECONDS) != 0
    assert "CudaUnusable: SANITIZER_DEVICE is cuda, and torch finds no" in workers.read_logs()


def test_worker_touches_its_alive_file_until_it_stops(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "alive"
    process = workers.start("succeed", alive_file=path)
    workers.wait_until(path.exists)
    first = path.stat().st_mtime
    workers.wait_until(lambda: path.stat().st_mtime > first)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not path.exists()


def test_worker_whose_broker_is_away_is_alive(
    bench: Bench, workers: Workers, tmp_path: Path
) -> None:
    path = tmp_path / "alive"
    broker = urlsplit(bench.settings.broker_url.get_secret_value())
    assert broker.port is not None

    def touched_again() -> None:
        before = path.stat().st_mtime
        workers.wait_until(lambda: path.stat().st_mtime > before)

    with FaultyNetwork(broker.port) as network:
        url = f"redis://127.0.0.1:{network.port}{broker.path}"
        workers.start("succeed", alive_file=path, broker_url=SecretStr(url))
        workers.wait_until(path.exists)
        job_id = bench.add_job()
        queue.send_job(queue.make_producer(bench.settings), job_id)
        workers.wait_until(lambda: _has_status(bench, job_id, JobStatus.SUCCEEDED))
    for _ in range(3):  # the first may be from before the connection was lost
        touched_again()


def test_worker_whose_acknowledgement_was_lost_takes_the_next_job(
    bench: Bench, workers: Workers
) -> None:
    broker = urlsplit(bench.settings.broker_url.get_secret_value())
    assert broker.port is not None
    producer = queue.make_producer(bench.settings)

    def allow(job_id: str) -> None:
        workers.wait_until(lambda: _attempts(bench, job_id) == 1)
        (bench.folder(job_id) / "work" / "go").touch()

    with FaultyNetwork(broker.port) as network:
        url = f"redis://127.0.0.1:{network.port}{broker.path}"
        first = bench.add_job()
        queue.send_job(producer, first)
        workers.start("succeed_once_allowed", broker_url=SecretStr(url))
        workers.wait_until(lambda: _attempts(bench, first) == 1)
        network.cut()
        allow(first)
        workers.wait_until(lambda: _has_status(bench, first, JobStatus.SUCCEEDED))
        # Celery says so within a second, as a rule; on a busy machine it may not have come to it,
        # or have lost the connection another way. What counts is that the next job is taken.
        deadline = time.monotonic() + 20
        while "Couldn't ack" not in workers.read_logs() and time.monotonic() < deadline:
            time.sleep(0.1)
        network.mend()

        second = bench.add_job()
        queue.send_job(producer, second)
        allow(second)
        workers.wait_until(lambda: _has_status(bench, second, JobStatus.SUCCEEDED))
