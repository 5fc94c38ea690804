"""One worker process: what its threads share, from start to stop."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from sanitizer.spec import Device
from service import queue
from service.db.session import for_writing, transaction
from service.jobs import service as jobs
from service.settings import Settings
from service.storage import make_store
from service.tracing import NoTracing, make_tracing
from worker import bytecode, isolation, landlock
from worker.collect import make_collecting
from worker.devices import Slot, Slots
from worker.folders import remove_stale
from worker.fonts import FontList
from worker.heartbeat import Heartbeat, make_worker_id
from worker.metrics import MetricsServer, RunMetrics, make_registry
from worker.observer import Observers, RunObserver
from worker.periodic import Periodic
from worker.reconcile import Reconciler
from worker.supervisor import Supervisor

SLOT_SECONDS = 3.0
"""How long a job waits here for a slot; then it is any worker's again.

There are as many threads as slots, but a job that shares several devices takes several slots.
"""

log = structlog.get_logger(__name__)


class NoFreeSlot(Exception):
    """All slots of this worker are taken."""


class WorkerProcess:
    """Claims jobs and runs them; reports; reconciles.

    Args:
        producer: Sends messages and wake-ups.
        cuda_devices: Those that its runs may use.
    """

    def __init__(
        self, settings: Settings, producer: Celery, cuda_devices: Sequence[str] = ()
    ) -> None:
        self.id = make_worker_id()
        self._settings = settings
        self._sessions = for_writing(settings.sessions)
        self._stopping = threading.Event()
        slots = self._slots = Slots(settings.slots, Device(settings.device), cuda_devices)
        store = make_store(settings)
        self._uses_cuda = slots.uses_cuda
        device = "cuda" if slots.uses_cuda else "cpu"
        registry = make_registry()
        run_metrics = RunMetrics(registry, device=device, slots=settings.slots)
        self._metrics_server = MetricsServer(
            registry, settings.worker_metrics_host, settings.worker_metrics_port
        )
        self._tracing = make_tracing(settings, "sanitizer-worker", instance_id=self.id)
        observers: list[RunObserver] = [run_metrics]
        if not isinstance(self._tracing, NoTracing):
            from worker.tracing import RunTracer  # here: OpenTelemetry is an extra

            observers.append(RunTracer(self._tracing))
        self._fonts = FontList()
        self._supervisor = Supervisor(
            settings,
            self._sessions,
            store,
            slots,
            stopping=self._stopping,
            wake=lambda job_id: queue.publish_wakeup(producer, job_id),
            observers=Observers(observers),
            fonts=self._fonts,
        )
        self._heartbeat = Heartbeat(
            self._sessions,
            self.id,
            device=device,
            slots=lambda: slots.usable,
        )
        self._reconciler = Reconciler(settings, self._sessions, producer)
        self._beating = Periodic("heartbeat", self._heartbeat.beat, settings.heartbeat_seconds)
        self._threads = [
            Periodic("reconcile", self._reconcile, settings.reconcile_seconds),
            make_collecting(settings, self._sessions, store, self._stopping.is_set),
        ]

    def start(self) -> None:
        """Begins to report and to reconcile."""
        self._settings.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        device = "cuda" if self._uses_cuda else "cpu"
        log.info("worker starts", worker_id=self.id, device=device, slots=self._settings.slots)
        version = landlock.find_version()
        isolation.report(self._settings, version, uses_cuda=self._uses_cuda)
        if isolation.is_on(self._settings, version, uses_cuda=self._uses_cuda):
            bytecode.compile_ahead()
        if not self._settings.child_command:
            self._fonts.begin()
        self._metrics_server.start()
        self._beating.start()
        for thread in self._threads:
            thread.start()

    def run(self, job_id: str) -> None:
        """Runs a job if it waits; a message that came twice or too late changes nothing."""
        # Not taken off again: what Celery says of an exception of ours comes after it.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(job_id=job_id, worker_id=self.id)
        if self._stopping.is_set():
            return  # reconcile sends the message again, to a worker that stays
        with transaction(self._sessions) as session:
            wish = jobs.wish(session, job_id)
        if wish is None:
            log.info("job is not waiting, nothing to do")
            return
        device, devices = wish
        on_cuda = device != Device.CPU
        # What fits nowhere here is claimed and told so.
        if self._slots.usable_for(on_cuda=on_cuda) < devices <= self._slots.most(on_cuda=on_cuda):
            # Claimed it would wait here for good, and keep others from the slots that are left.
            self._leave_to_others(job_id, "slots are kept by runs that cannot be ended")
            return
        if devices > 1:
            # Claimed first: until so many slots are free it must keep its place among others.
            self._claim_and_run(job_id)
            return
        try:
            with self._slots.taken(on_cuda=on_cuda, check=self._make_impatient()) as slot:
                self._claim_and_run(job_id, slot)
        except NoFreeSlot:
            self._leave_to_others(job_id, "no slot is free")

    def has_usable_slots(self) -> bool:
        """Whether jobs can run here; not if children that cannot be ended keep all slots."""
        return self._slots.usable > 0

    def _leave_to_others(self, job_id: str, reason: str) -> None:
        log.info("the job is left to others", reason=reason)
        with transaction(self._sessions) as session:
            jobs.mark_unsent(session, job_id)

    def _claim_and_run(self, job_id: str, slot: Slot | None = None) -> None:
        with transaction(self._sessions) as session:
            claim = jobs.claim(session, job_id, self.id, self._settings.lease_seconds)
        if claim is None:
            log.info("job is not waiting any more, nothing to do")
            return
        self._supervisor.run(claim, slot)

    def _make_impatient(self) -> Callable[[], None]:
        """What raises `NoFreeSlot` when it is called in some seconds, or once the worker stops."""
        deadline = time.monotonic() + SLOT_SECONDS

        def check() -> None:
            if self._stopping.is_set() or time.monotonic() >= deadline:
                raise NoFreeSlot

        return check

    def begin_stop(self) -> None:
        """Lets running jobs go back to the queue; safe to call from a signal handler."""
        self._stopping.set()

    def stop(self) -> None:
        """Ends the threads and signs off; call it once no job runs any more."""
        self._stopping.set()
        self._beating.stop()
        with suppress(SQLAlchemyError):
            self._heartbeat.sign_off()  # before what may take long enough to be killed in
        for thread in self._threads:
            thread.stop()
        self._metrics_server.stop()
        self._tracing.close()
        self._sessions.kw["bind"].dispose()
        log.info("worker has stopped", worker_id=self.id)

    def _reconcile(self) -> None:
        self._reconciler.run()
        remove_stale(self._settings.work_dir, self._is_over)

    def _is_over(self, job_id: str) -> bool:
        with transaction(self._sessions) as session:
            return jobs.is_over(session, job_id)
