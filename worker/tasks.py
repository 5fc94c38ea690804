"""What Celery runs, and when it tells the worker process to start and to stop."""

import functools

import structlog
from celery import Celery, signals
from kombu import Queue

from sanitizer.spec import Device
from service import logs, queue
from service.settings import Settings
from service.tracing import require_installed
from worker import descendants, isolation, landlock
from worker.bootsteps import (
    connect_again_after_a_lost_acknowledgement,
    rest_unless,
    touch_while_alive,
)
from worker.devices import find_cuda_devices, usable_cuda_devices, uses_cuda
from worker.process import WorkerProcess

log = structlog.get_logger(__name__)


def make_app(settings: Settings) -> Celery:
    """The Celery app of a worker: a pool of threads, one job a thread, nothing taken ahead."""
    # Here, because Celery only logs what is raised while the worker starts.
    require_installed(settings)
    isolation.require(settings, landlock.find_version())
    app = queue.make_celery(settings, "sanitizer.worker")
    cuda_devices = usable_cuda_devices(settings)
    has_cuda = uses_cuda(Device(settings.device), cuda_devices)
    taken = queue.queues_taken(has_cuda=has_cuda, only_asked_for=settings.only_asked_for)
    app.conf.update(
        task_queues=[Queue(name) for name in taken],
        worker_pool="threads",
        worker_concurrency=settings.slots,
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        # A task that raises could not claim its job; reconcile sends it again.
        task_acks_on_failure_or_timeout=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any absence of its broker
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )

    connect_again_after_a_lost_acknowledgement(app)
    if settings.alive_file is not None:
        touch_while_alive(app, settings.alive_file)

    @functools.cache
    def process() -> WorkerProcess:
        # Made when the worker starts, not when this app is imported: it opens the store.
        return WorkerProcess(settings, queue.make_producer(settings), cuda_devices)

    rest_unless(app, lambda: process().has_usable_slots())

    def run_job(job_id: str) -> None:
        process().run(job_id)

    app.task(run_job, name=queue.RUN_JOB)

    def start(**_: object) -> None:
        logs.configure(settings)  # Celery's own time for it comes later
        if not has_cuda and settings.device == Device.AUTO and (there := find_cuda_devices()):
            log.warning("torch can use no CUDA device; this worker computes on CPUs", there=there)
        if not descendants.adopt_orphans():
            log.warning("processes that a run leaves behind cannot be found on this system")
        process().start()

    # The signals are of the whole process, and a worker process has one app. `weak` is off because
    # nothing else holds these functions.
    connect = {"weak": False}
    signals.setup_logging.connect(lambda **_: logs.configure(settings), **connect)
    signals.worker_init.connect(start, **connect)
    signals.worker_shutting_down.connect(lambda **_: process().begin_stop(), **connect)
    signals.worker_shutdown.connect(lambda **_: process().stop(), **connect)
    return app
