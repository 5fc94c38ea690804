"""Fixtures of the worker's tests: a supervisor over real rows, files and child processes."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sanitizer.spec import Device
from service.db.session import SessionFactory, transaction
from service.db.tables import Dataset, Job, Model
from service.jobs import service as jobs
from service.jobs.service import Claim
from service.settings import Settings
from service.storage import ObjectStore, make_store
from tests.builders import add_dataset, add_job, add_model, add_tenant
from worker.devices import Slots
from worker.outcomes import Outcome
from worker.supervisor import Supervisor

PROGRAM = Path(__file__).with_name("child_program.py")
ROOT = PROGRAM.parents[2]


def child_command(behaviour: str) -> tuple[str, ...]:
    """What starts a child that behaves so, in whatever folder it runs."""
    start = (
        f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'child'; "
        "runpy.run_module('tests.worker.child_program', run_name='__main__')"
    )
    return (sys.executable, "-c", start, behaviour)


class Bench:
    """One job with its files in the store, and a supervisor to run it.

    Attributes:
        worker_sessions: The supervisor's way to the database; the same as the test's at first.
    """

    def __init__(self, settings: Settings, sessions: SessionFactory) -> None:
        self.settings = settings
        self.sessions = sessions
        self.worker_sessions = sessions
        self.store: ObjectStore = make_store(settings)
        self.stopping = threading.Event()
        self.woken: list[str] = []

    def add_job(
        self,
        *,
        max_attempts: int = 3,
        reference: str | None = None,
        device: str | None = None,
        devices: int = 1,
    ) -> str:
        """A queued job whose model and data lie in the store."""
        with transaction(self.sessions) as session:
            tenant = add_tenant(session, f"tenant-{os.urandom(4).hex()}")
            model = add_model(session, tenant)
            clean = (
                add_dataset(session, tenant)
                if reference is None
                else add_dataset(
                    session, tenant, storage_key=None, sha256=None, reference=reference
                )
            )
            self._upload(model, b"suspect weights")
            if not reference:
                self._upload(clean, b"clean images")
            return add_job(
                session,
                tenant,
                model=model,
                clean=clean,
                max_attempts=max_attempts,
                device=device,
                devices=devices,
            ).id

    def _upload(self, row: Model | Dataset, content: bytes) -> None:
        source = self.settings.work_dir.parent / "upload"
        source.write_bytes(content)
        row.sha256 = self.store.put_file(str(row.storage_key), source).sha256

    def supervisor(self, behaviour: str, **changes: object) -> Supervisor:
        settings = self.settings.model_copy(
            update={"child_command": child_command(behaviour), **changes}
        )
        return Supervisor(
            settings,
            self.worker_sessions,
            self.store,
            Slots(settings.slots, Device.CPU, []),
            self.stopping,
            self.woken.append,
        )

    def claim(self, job_id: str) -> Claim:
        with transaction(self.sessions) as session:
            claim = jobs.claim(session, job_id, "w1", self.settings.lease_seconds)
        assert claim is not None
        return claim

    def run(self, job_id: str, behaviour: str, **changes: object) -> Outcome:
        """Claims a job and takes it through one attempt."""
        return self.supervisor(behaviour, **changes).run(self.claim(job_id))

    def run_until(
        self,
        job_id: str,
        behaviour: str,
        when: Callable[[], bool],
        then: Callable[[], object],
        **changes: object,
    ) -> Outcome:
        """Runs a job in a thread, and does something once a condition holds."""
        claim = self.claim(job_id)
        outcomes: list[Outcome] = []
        supervisor = self.supervisor(behaviour, **changes)
        thread = threading.Thread(target=lambda: outcomes.append(supervisor.run(claim)))
        thread.start()
        try:
            pause = threading.Event()
            for _ in range(600):
                if when():
                    break
                pause.wait(0.05)
            else:
                raise AssertionError("the condition did not come to hold within 30 s")
            then()
            thread.join(60)
            assert not thread.is_alive()
        finally:
            if thread.is_alive():
                self.stopping.set()
                thread.join()
        return outcomes[0]

    def job(self, job_id: str) -> Job:
        with transaction(self.sessions) as session:
            return session.get_one(Job, job_id)

    def folder(self, job_id: str) -> Path:
        return self.settings.work_dir / job_id


@pytest.fixture
def bench(settings: Settings, sessions: SessionFactory) -> Bench:
    """Rows, files and a supervisor, with a quick heartbeat."""
    settings = settings.model_copy(
        update={
            "heartbeat_seconds": 0.2,
            "lease_seconds": 20.0,
            "cancel_grace_seconds": 0.5,
            "retry_seconds": 0.0,
        }
    )
    settings.work_dir.mkdir(parents=True)
    return Bench(settings, sessions)
