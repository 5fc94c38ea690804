"""Several real processes that join a group, and do something together."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sanitizer.parallel.group import Group, joined

Task = Callable[..., Any]


class Processes:
    """Up to three processes, kept from test to test: each takes two seconds to import torch."""

    def __init__(self, pool: ProcessPoolExecutor, folder: Path) -> None:
        self._pool = pool
        self._folder = folder
        self._runs = 0

    def together(self, size: int, task: Task, *given: Any) -> list[Any]:
        """What `task(group, *given)` gives in each of so many processes, by rank."""
        self._runs += 1
        meeting = self._folder / str(self._runs)
        futures = [
            # One that waits for the others is busy, so that each gets a process of its own.
            self._pool.submit(_join, meeting, rank, size, task, given)
            for rank in range(size)
        ]
        return [future.result(timeout=60) for future in futures]


def _join(meeting: Path, rank: int, size: int, task: Task, given: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    group: Group
    try:
        with joined(meeting, rank, size, torch.device("cpu")) as group:
            return task(group, *given)
    except BaseException:
        # It has left the others waiting, who end with it: the test fails, and does not hang.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    spawning = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(3, mp_context=spawning) as pool:
        yield Processes(pool, tmp_path_factory.mktemp("meetings"))
