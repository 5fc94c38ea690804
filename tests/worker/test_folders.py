"""Folders of jobs: one attempt at a time, removed once the job is over."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from worker.folders import FolderBusy, job_folder, remove_folder, remove_stale


class GivenUp(Exception):
    pass


def test_folder_stays_between_attempts_with_what_is_in_it(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        with job_folder(tmp_path, "job_1", wait_seconds=0, check=bool) as folder:
            (folder.work / attempt).touch()
    assert sorted(os.listdir(tmp_path / "job_1" / "work")) == ["first", "second"]


def test_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    with job_folder(tmp_path, "job_1", wait_seconds=0, check=bool) as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700


def test_second_attempt_at_once_is_refused(tmp_path: Path) -> None:
    with (
        job_folder(tmp_path, "job_1", wait_seconds=0, check=bool),
        pytest.raises(FolderBusy),
        job_folder(tmp_path, "job_1", wait_seconds=0, check=bool),
    ):
        pass


def test_folder_that_is_removed_while_it_is_taken_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a worker that finds the job to be over, or by the attempt before."""
    lock = fcntl.flock

    def remove_then_lock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "job_1")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_then_lock)
    with job_folder(tmp_path, "job_1", wait_seconds=10, check=bool) as folder:
        assert (folder.path / "lock").exists()
        assert not remove_folder(tmp_path, "job_1")


def test_waiting_for_a_folder_ends_when_the_attempt_shall_not_go_on(tmp_path: Path) -> None:
    def give_up() -> None:
        raise GivenUp

    with (
        job_folder(tmp_path, "job_1", wait_seconds=0, check=bool),
        pytest.raises(GivenUp),
        job_folder(tmp_path, "job_1", wait_seconds=600, check=give_up),
    ):
        pass


def test_folder_in_use_is_not_removed(tmp_path: Path) -> None:
    with job_folder(tmp_path, "job_1", wait_seconds=0, check=bool) as folder:
        assert not remove_folder(tmp_path, "job_1")
        assert folder.path.exists()
    assert remove_folder(tmp_path, "job_1")
    assert not (tmp_path / "job_1").exists()


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    assert not remove_folder(tmp_path, "job_1")


def test_stale_folders_are_those_of_jobs_that_are_over(tmp_path: Path) -> None:
    for name in ("job_over", "job_waiting", "other"):
        (tmp_path / name).mkdir()
    assert remove_stale(tmp_path, lambda job_id: job_id == "job_over") == ["job_over"]
    assert sorted(os.listdir(tmp_path)) == ["job_waiting", "other"]


def test_worker_without_a_folder_has_nothing_stale(tmp_path: Path) -> None:
    assert remove_stale(tmp_path / "missing", bool) == []
