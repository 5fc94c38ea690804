"""The folder of a job on the worker's disk: one attempt at a time works in it."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sanitizer.errors import Fault, SanitizerError
from service.jobs.codes import WorkerCode

LOOK_SECONDS = 0.2


class FolderBusy(SanitizerError):
    """An earlier attempt at the job, or its child, still works in the folder."""

    code = WorkerCode.WORK_FOLDER_BUSY
    fault = Fault.MACHINE


class JobFolder:
    """Where files of a job lie while it runs.

    It stays between attempts, so that a later one on this machine goes on from the checkpoint.

    Attributes:
        lock: A file descriptor; while any process holds it open, the folder is in use.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.lock = lock

    @property
    def input(self) -> Path:
        """Model and data sets, as they were uploaded."""
        return self._made("input")

    @property
    def out(self) -> Path:
        """What the run leaves."""
        return self._made("out")

    @property
    def work(self) -> Path:
        """The run's own: decoded images, checkpoint."""
        return self._made("work")

    @property
    def home(self) -> Path:
        """Home of the child, and its temporary files."""
        return self._made("home")

    @property
    def spec(self) -> Path:
        """What the child is asked to do."""
        return self.path / "spec.json"

    @property
    def last_attempt(self) -> int | None:
        """The number of the attempt that worked here last; none: nobody did."""
        try:
            return int((self.path / "attempt").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    @last_attempt.setter
    def last_attempt(self, number: int | None) -> None:
        path = self.path / "attempt"
        if number is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(f"{number}\n", encoding="ascii")

    def clear_out(self) -> None:
        """Removes what an attempt that was cut short has left."""
        shutil.rmtree(self.path / "out", ignore_errors=True)

    def _made(self, name: str) -> Path:
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path


@contextmanager
def job_folder(
    root: Path, job_id: str, *, wait_seconds: float, check: Callable[[], object]
) -> Iterator[JobFolder]:
    """The folder of a job, made if it is not there, for this attempt alone.

    A child of an earlier attempt holds the lock too, so two never write the same checkpoint.

    Args:
        check: Called while it waits; raises if the attempt shall not go on.

    Raises:
        FolderBusy: It was not free within `wait_seconds`.
    """
    path = root.resolve() / job_id
    deadline = time.monotonic() + wait_seconds
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _try_lock(path)
        if lock is not None:
            break
        check()
        if time.monotonic() >= deadline:
            raise FolderBusy(
                "An earlier attempt still works in the job's folder on this worker, after "
                f"{wait_seconds:g} s."
            )
        time.sleep(LOOK_SECONDS)
    try:
        yield JobFolder(path, lock)
    finally:
        os.close(lock)


def remove_folder(root: Path, job_id: str) -> bool:
    """Removes the folder of a job that is over; False: somebody works in it, or it is not there."""
    path = root.resolve() / job_id
    lock = _try_lock(path)
    if lock is None:
        return False
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
    return True


def remove_stale(root: Path, is_over: Callable[[str], bool]) -> list[str]:
    """Removes folders of jobs that are over and that nobody works in; gives their names.

    They are left by workers that were killed, and by jobs that another worker has ended.
    """
    names = sorted(path.name for path in root.glob("job_*"))
    return [name for name in names if is_over(name) and remove_folder(root, name)]


def _try_lock(path: Path) -> int | None:
    """Locks a folder; none: it is locked, or has just been removed."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The folder may have been removed in between: the lock must be the one that is in it.
        if os.path.samestat(os.fstat(lock), os.stat(path / "lock")):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
