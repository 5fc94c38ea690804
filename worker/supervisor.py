"""Takes one job through one attempt: fetch, run the child, follow it, store what it leaves."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy.orm import Session

from sanitizer.events import ResultEvent
from sanitizer.spec import Device, SanitizeSpec
from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, transaction
from service.jobs import service as jobs
from service.jobs.service import Claim, LeaseLost
from service.settings import Settings
from service.storage import ObjectStore
from worker import checkpoints, isolation, landlock, results
from worker.child import Child, Limits
from worker.devices import Slot, Slots
from worker.folders import JobFolder, job_folder, remove_folder
from worker.fonts import FontList
from worker.inputs import Inputs
from worker.lease import LeaseKeeper
from worker.observer import Observers, Phase
from worker.outcomes import (
    Cancelled,
    Failed,
    Lost,
    Outcome,
    Released,
    Stopped,
    Succeeded,
    bad_result,
    event_of_exit,
    event_of_fault,
    event_of_stuck_child,
    event_of_timeout,
)
from worker.patience import Patience
from worker.story import Story

TICK_SECONDS = 0.5
"""How often events are written."""
LAST_WORD_SECONDS = 60.0
"""How long a child may take to exit after its last event, and its pipes to run dry."""
AWAY_LEASES = 5
"""How many leases long a store or a database that is away is waited for."""
SETTLE_SECONDS = 2.0
"""Between two tries to write how a job ended, while the database is away."""
LAST_TRIES_SECONDS = 15.0
"""How long a worker that is told to stop tries so, or to store a result."""
INHERITED = ("PATH", "LD_LIBRARY_PATH", "TZ")
"""What the child sees of this process's environment."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Supervisor:
    """Runs claimed jobs, each in a child process.

    Attributes:
        stopping: Set when this worker shall end: jobs are given back.
        wake: Tells whoever streams a job's events that there are new ones.
        observers: Look on; see `worker.observer`.
        fonts: The list of fonts that each run gets.
    """

    settings: Settings
    sessions: SessionFactory
    store: ObjectStore
    slots: Slots
    stopping: threading.Event
    wake: Callable[[str], None]
    observers: Observers = field(default_factory=Observers)
    fonts: FontList = field(default_factory=FontList)

    def run(self, claim: Claim, slot: Slot | None = None) -> Outcome:
        """Takes a claimed job to the end of this attempt, and writes how it ended.

        Args:
            claim: The worker's hold on the job.
            slot: Where it runs; without one it waits for as many as it needs.
        """
        with structlog.contextvars.bound_contextvars(
            job_id=claim.job_id,
            attempt=claim.attempt,
            tenant_id=claim.tenant_id,
            worker_id=claim.worker_id,
        ):
            self.observers.begins(claim)
            log.info("job begins")
            began = time.monotonic()
            self.wake(claim.job_id)
            outcome: Outcome = Lost()  # what stands if the next line raises
            try:
                outcome = _Attempt(self, claim, slot).run()
            finally:
                log.info(
                    "job leaves this worker",
                    outcome=type(outcome).__name__.lower(),
                    code=outcome.error.code if isinstance(outcome, Failed) else None,
                    seconds=round(time.monotonic() - began, 1),
                )
                self.observers.ends(claim, outcome)
            return outcome


class _Attempt:
    def __init__(self, supervisor: Supervisor, claim: Claim, slot: Slot | None) -> None:
        self._at = supervisor
        self._settings = supervisor.settings
        self._claim = claim
        self._given_slot = slot
        self._lease = LeaseKeeper(supervisor.sessions, claim, supervisor.settings.heartbeat_seconds)
        self._story = Story(
            supervisor.sessions,
            claim,
            on_state=self._lease.note,
            wake=supervisor.wake,
            observers=supervisor.observers,
        )

    def run(self) -> Outcome:
        with self._lease:
            outcome = self._settle(self._work())
        # A job that is tried again, here perhaps, finds its checkpoint.
        if not isinstance(outcome, Released | Lost) and self._is_over():
            remove_folder(self._settings.work_dir, self._claim.job_id)
            checkpoints.drop(self._at.store, self._at.sessions, self._claim.job_id)
        return outcome

    def _work(self) -> Outcome:
        """All but the last write to the database; whatever goes wrong becomes an outcome."""
        self._enter(Phase.PREPARE)
        try:
            with (
                job_folder(
                    self._settings.work_dir,
                    self._claim.job_id,
                    wait_seconds=self._settings.lease_seconds,
                    check=self._check,
                ) as folder,
                self._slot() as slot,
            ):
                spec = self._prepare(folder)
                checkpoints.bring(self._at.store, folder, self._claim, self._patience())
                self._check()
                if spec.device is Device.CPU:
                    # The job's own wish: it sees no CUDA device and gets the limit on memory.
                    slot = replace(slot, cuda_devices="")
                return self._follow(folder, slot)
        except Stopped as stopped:
            return stopped.outcome
        except Exception as error:
            event = event_of_fault(error)
            log.warning("attempt failed", code=event.code, exc_info=True)
            return Failed(event)

    def _slot(self) -> AbstractContextManager[Slot]:
        if self._given_slot is not None:
            return nullcontext(self._given_slot)
        return self._at.slots.taken(
            self._claim.devices, on_cuda=self._claim.device != Device.CPU, check=self._check
        )

    # --- The child -------------------------------------------------------------------------------

    def _prepare(self, folder: JobFolder) -> SanitizeSpec:
        inputs = Inputs(
            self._at.sessions, self._at.store, self._settings.reference_roots, self._patience()
        )
        return inputs.prepare(
            folder,
            self._claim.job_id,
            device=Device(self._settings.device),
            threads=self._threads(),
            checkpoint_seconds=self._settings.checkpoint_seconds,
            check=self._check,
        )

    def _follow(self, folder: JobFolder, slot: Slot) -> Outcome:
        story = self._story
        keeper = checkpoints.CheckpointKeeper(
            self._at.store,
            self._at.sessions,
            self._claim,
            folder,
            self._settings.checkpoint_store_seconds,
        )
        self._enter(Phase.CHILD)
        child = self._start(folder, slot)
        try:
            with keeper:
                stopped = self._watch(child, story)
                self._hear_out(child, story)
        finally:
            code = child.finish()
            if code is None:
                # It may still compute, and hold memory of the device.
                log.error("child cannot be ended, its slot stays taken", pid=child.pid)
                self._at.slots.keep(slot, until=child.wait)
            else:
                log.info("child has ended", pid=child.pid, exit_code=code)
        self._enter(Phase.STORE)
        if self._lease.lost:
            return Lost()
        stores_checkpoints = bool(self._settings.checkpoint_store_seconds)
        if isinstance(stopped, Released) and stores_checkpoints:
            keeper.keep()  # whoever goes on with the job may do so on another host
        if isinstance(story.last, ResultEvent):
            try:
                return results.keep(
                    self._at.store,
                    self._claim.job_id,
                    folder.out,
                    story.last.artifacts,
                    check=self._check_lease,
                    patience=self._patience(self._make_check_of_storing()),
                )
            except Stopped as given_up:
                if isinstance(given_up.outcome, Released) and stores_checkpoints:
                    keeper.keep()
                raise
        if story.last is not None:
            log.info("child failed", code=story.last.code, stderr=child.error_tail())
            return Failed(story.last)
        if stopped is not None:
            return stopped
        if code is None:
            return Failed(event_of_stuck_child())
        log.warning("child ended without a word", exit_code=code, stderr=child.error_tail())
        return Failed(event_of_exit(code, child.error_tail()))

    def _start(self, folder: JobFolder, slot: Slot) -> Child:
        program = self._settings.child_command or (sys.executable, "-P", "-m", "sanitizer")
        memory = None if slot.cuda_devices else self._settings.job_memory_bytes
        child = Child(
            [
                *program,
                *("run", str(folder.spec), "--out", str(folder.out), "--work", str(folder.work)),
                "--exit-with-parent",
            ],
            environment=self._environment(folder, slot),
            folder=folder.home,
            limits=Limits(memory, self._settings.job_file_bytes, self._allowed(folder, slot)),
            keep_open=[folder.lock],
        )
        log.info("child started", pid=child.pid)
        return child

    def _watch(self, child: Child, story: Story) -> Outcome | None:
        """Follows the child until it has exited; gives why it was stopped, if it was."""
        deadline = time.monotonic() + self._settings.job_timeout_seconds
        has_ended = False
        while not child.has_exited(TICK_SECONDS):
            story.add(child.take_events(story.room))
            story.write()
            if self._lease.lost:
                child.kill()
                return Lost()
            if self._lease.cancel_requested or self._at.stopping.is_set():
                child.stop(self._settings.cancel_grace_seconds)
                return Cancelled() if self._lease.cancel_requested else Released()
            if story.last is not None and not has_ended:
                has_ended = True
                deadline = time.monotonic() + LAST_WORD_SECONDS
            if time.monotonic() >= deadline:
                child.stop(self._settings.cancel_grace_seconds)
                return Failed(event_of_timeout(self._settings.job_timeout_seconds))
        return None

    def _hear_out(self, child: Child, story: Story) -> None:
        """Takes in what the exited child still had to say, whether it can be written or not."""
        child.kill()  # descendants that it left would hold its pipes open
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while time.monotonic() < deadline and not self._lease.lost:
            heard = child.is_heard
            events = child.take_events()
            story.add(events)
            if not events:
                if not heard:
                    break
                time.sleep(0.01)
        story.write()  # what fails goes with the end of the attempt

    # --- The last write --------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> Outcome:
        """Writes how the attempt ended; waits for the database as long as that makes sense."""
        last = time.monotonic() + AWAY_LEASES * self._settings.lease_seconds
        is_hurried = has_dropped_story = False
        refused: Outcome | None = None
        while True:
            try:
                with transaction(self._at.sessions) as session:
                    self._write(session, outcome)
            except DATABASE_AWAY as error:
                log.warning("the end of the job waits for the database", reason=str(error))
                if self._at.stopping.is_set() and not is_hurried:
                    is_hurried = True
                    last = min(last, time.monotonic() + LAST_TRIES_SECONDS)
                if time.monotonic() >= last:
                    # The lease runs out, and reconcile takes the job back. Files stay: a commit
                    # whose answer was lost may name them; if none does, they are collected.
                    return Lost()
                if is_hurried:
                    time.sleep(SETTLE_SECONDS)
                else:
                    self._at.stopping.wait(SETTLE_SECONDS)
            except LeaseLost:
                log.warning("the job is somebody else's by now: this attempt's work is dropped")
                self._forget(outcome)
                return Lost()
            except Exception as error:
                if refused is not None:
                    raise
                is_bad = isinstance(outcome, Succeeded) and isinstance(error, ValueError)
                self._story.forget()
                if isinstance(outcome, Succeeded) and not is_bad and not has_dropped_story:
                    # A result is worth more than the last events before it.
                    log.warning("the result is written without last events", reason=str(error))
                    has_dropped_story = True
                    continue
                # Tried again it would be refused again, and the job run for nothing.
                log.warning("the end of the job cannot be written as it is", exc_info=True)
                refused = outcome
                outcome = Failed(bad_result(str(error)).event if is_bad else event_of_fault(error))
            else:
                if refused is not None:
                    self._forget(refused)
                self._at.wake(self._claim.job_id)
                return outcome

    def _write(self, session: Session, outcome: Outcome) -> None:
        if isinstance(outcome, Lost):
            return
        try:
            self._story.write_rest(session)
            self._write_end(session, outcome)
        except LeaseLost:
            # By an earlier try of this very write, whose answer was lost?
            if not (isinstance(outcome, Succeeded) and jobs.is_kept(session, outcome.artifacts)):
                raise

    def _write_end(
        self, session: Session, outcome: Succeeded | Failed | Cancelled | Released
    ) -> None:
        match outcome:
            case Succeeded(report, artifacts):
                jobs.succeed(session, self._claim, report, artifacts)
            case Failed(error):
                retry = self._settings.retry_seconds
                jobs.fail(session, self._claim, error, retry_seconds=retry)
            case Cancelled():
                jobs.finish_cancelled(session, self._claim)
            case Released():
                jobs.release(session, self._claim, "The worker was stopped.")

    def _forget(self, outcome: Outcome) -> None:
        if isinstance(outcome, Succeeded):
            results.forget(self._at.store, outcome.artifacts)

    def _is_over(self) -> bool:
        try:
            with transaction(self._at.sessions) as session:
                return jobs.is_over(session, self._claim.job_id)
        except DATABASE_AWAY:
            return False

    # --- Parts -----------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self._at.observers.enters(self._claim, phase)

    def _check(self) -> None:
        """Raises `Stopped` if the attempt shall not go on."""
        self._check_lease()
        if self._lease.cancel_requested:
            raise Stopped(Cancelled())
        if self._at.stopping.is_set():
            raise Stopped(Released())

    def _make_check_of_storing(self) -> Callable[[], None]:
        """As `_check`, but a stopping worker tries on for a while: the work is done."""
        stopped_at: float | None = None

        def check() -> None:
            nonlocal stopped_at
            self._check_lease()
            if self._lease.cancel_requested:
                raise Stopped(Cancelled())
            if self._at.stopping.is_set():
                now = time.monotonic()
                stopped_at = now if stopped_at is None else stopped_at
                if now >= stopped_at + LAST_TRIES_SECONDS:
                    raise Stopped(Released())

        return check

    def _check_lease(self) -> None:
        """Raises `Stopped` if the job is somebody else's; whoever else asks, a result is kept."""
        if self._lease.lost:
            raise Stopped(Lost())

    def _patience(self, check: Callable[[], None] | None = None) -> Patience:
        """With a store that is away: as long as with a database.

        Args:
            check: What ends it early; `_check` if left out, so that a stopping worker has none.
        """
        return Patience(AWAY_LEASES * self._settings.lease_seconds, check or self._check)

    def _threads(self) -> int:
        given = self._settings.threads_per_job
        each = given or max(1, (os.cpu_count() or 1) // self._settings.slots)
        return each * self._claim.devices  # it holds as many slots

    def _allowed(self, folder: JobFolder, slot: Slot) -> isolation.Allowed | None:
        uses_cuda = bool(slot.cuda_devices)
        if not isolation.is_on(self._settings, landlock.find_version(), uses_cuda=uses_cuda):
            return None
        return isolation.find_allowed(
            folder,
            self._settings.reference_roots,
            uses_cuda=uses_cuda,
            # Processes that share a run meet over the loopback interface.
            uses_tcp=self._claim.devices > 1,
        )

    def _environment(self, folder: JobFolder, slot: Slot) -> dict[str, str]:
        """All that the child gets to see: no database, no broker, no store."""
        threads = str(self._threads() // self._claim.devices)
        fonts = self._at.fonts.place(folder.home)
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            "LANG": "C.UTF-8",
            "HOME": str(folder.home),
            "TMPDIR": str(folder.home),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": slot.cuda_devices,
            **({} if fonts is None else {"MPLCONFIGDIR": str(fonts)}),
        }
