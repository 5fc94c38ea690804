"""Devices are found without touching CUDA, and dealt out among the slots."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sanitizer.errors import NotEnoughDevices
from sanitizer.spec import Device
from service.settings import Settings
from worker.devices import CudaUnusable, Slots, find_cuda_devices, usable_cuda_devices


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"])],
)
def test_environment_names_the_devices(value: str, expected: list[str]) -> None:
    assert find_cuda_devices({"CUDA_VISIBLE_DEVICES": value}) == expected


def test_without_a_name_the_device_files_are_counted_as_cuda_does(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert find_cuda_devices({}, tmp_path) == ["0", "1"]


def unseen(device: str, **changes: Any) -> Settings:
    return Settings(_env_file=None, device=device, **changes)


HIDDEN = {**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-that-no-machine-has"}


def test_a_worker_for_cuda_does_not_start_where_torch_cannot_use_it() -> None:
    with pytest.raises(CudaUnusable, match=r"GPU-that-no-machine-has.* cpu or auto"):
        usable_cuda_devices(unseen("cuda"), HIDDEN)


def test_devices_that_torch_cannot_use_are_none_where_any_device_will_do() -> None:
    assert usable_cuda_devices(unseen("auto"), HIDDEN) == []


def test_torch_is_not_asked_where_nothing_depends_on_it(tmp_path: Path) -> None:
    assert usable_cuda_devices(unseen("cpu"), {"CUDA_VISIBLE_DEVICES": "0"}) == []
    assert usable_cuda_devices(unseen("auto"), {}, tmp_path) == []
    elsewhere = unseen("cuda", child_command=("bwrap", "python"))
    assert usable_cuda_devices(elsewhere, {"CUDA_VISIBLE_DEVICES": "0,1"}) == ["0", "1"]


def test_each_slot_has_a_device_of_its_own() -> None:
    slots = Slots(2, Device.AUTO, ["0", "1"])
    with slots.taken() as first, slots.taken() as second:
        assert {first.cuda_devices, second.cuda_devices} == {"0", "1"}


def test_slot_that_is_given_back_is_taken_again() -> None:
    slots = Slots(1, Device.CPU, [])
    for _ in range(2):
        with slots.taken() as slot:
            assert slot.number == 0


def test_worker_set_up_for_the_cpu_hides_the_devices() -> None:
    slots = Slots(1, Device.CPU, ["0"])
    with slots.taken() as slot:
        assert slot.cuda_devices == ""
    assert not slots.uses_cuda


def test_worker_without_devices_computes_on_the_cpu() -> None:
    assert not Slots(1, Device.AUTO, []).uses_cuda


def test_run_that_shares_devices_gets_all_of_them_at_once() -> None:
    slots = Slots(3, Device.AUTO, ["0", "1", "2"])
    with slots.taken(2) as both, slots.taken() as third:
        seen = [*both.cuda_devices.split(","), third.cuda_devices]
        assert sorted(seen) == ["0", "1", "2"]


def test_where_slots_share_devices_a_run_gets_as_many_devices_as_it_asks_for() -> None:
    slots = Slots(4, Device.AUTO, ["0", "1"])
    with slots.taken(2) as slot:
        assert sorted(slot.cuda_devices.split(",")) == ["0", "1"]
    with pytest.raises(NotEnoughDevices, match="asks for 3 devices, and there are 2"):
        slots.taken(3).__enter__()


def test_processes_on_the_cpu_need_no_devices_of_their_own() -> None:
    slots = Slots(4, Device.AUTO, ["0", "1"])
    with slots.taken(4, on_cuda=False):
        pass


def test_more_than_there_are_slots_is_refused_at_once() -> None:
    with pytest.raises(NotEnoughDevices) as raised:
        Slots(2, Device.CPU, []).taken(3).__enter__()
    assert raised.value.data == {"wanted": 3, "available": 2}


class Runs:
    """Threads that each take slots, tell of it, and keep them until they are told."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.begun: list[str] = []
        self._told: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    def start(self, name: str, count: int) -> None:
        """Asks for slots, and comes back once the run waits or has them."""
        waiting = threading.Event()
        self._told[name] = threading.Event()

        def run() -> None:
            with self.slots.taken(count, check=waiting.set):
                with self._changed:
                    self.begun.append(name)
                    self._changed.notify_all()
                waiting.set()
                self._told[name].wait(30)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)
        assert waiting.wait(10)

    def end(self, name: str) -> None:
        self._told[name].set()

    def await_begun(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.begun == list(names), 10), self.begun

    def end_all(self) -> None:
        for told in self._told.values():
            told.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def test_two_runs_that_each_need_all_do_not_wait_for_each_other() -> None:
    slots = Slots(2, Device.CPU, [])
    done: list[int] = []

    def run() -> None:
        for _ in range(200):
            with slots.taken(2):
                done.append(len(done))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Nobody counted while another did.
    assert done == list(range(800))


def test_run_that_needs_several_is_not_passed_by_those_that_need_one() -> None:
    runs = Runs(Slots(2, Device.CPU, []))
    runs.start("small", 1)
    runs.start("big", 2)
    runs.start("late", 1)
    assert runs.begun == ["small"]
    runs.end("small")
    runs.await_begun("small", "big")
    runs.end("big")
    runs.await_begun("small", "big", "late")
    runs.end_all()


def test_run_that_shall_not_go_on_waits_no_longer_and_lets_others_pass() -> None:
    class Cancelled(Exception):
        pass

    def cancel() -> None:
        raise Cancelled

    slots = Slots(2, Device.CPU, [])
    with slots.taken():
        with pytest.raises(Cancelled):
            slots.taken(2, check=cancel).__enter__()
        with slots.taken():
            pass
    with slots.taken(2):
        pass


def test_runs_share_a_device_only_when_none_is_idle() -> None:
    slots = Slots(4, Device.CUDA, ["0", "1"])
    with slots.taken() as first, slots.taken() as second, slots.taken() as third:
        assert {first.cuda_devices, second.cuda_devices} == {"0", "1"}
        assert third.cuda_devices in {"0", "1"}


def test_devices_all_of_whose_slots_are_kept_count_for_no_run() -> None:
    slots = Slots(4, Device.CUDA, ["0", "1"])
    ended = threading.Event()
    with slots.taken(), slots.taken() as second, slots.taken(), slots.taken() as fourth:
        assert second.cuda_devices == fourth.cuda_devices
        slots.keep(second, ended.wait)
        slots.keep(fourth, ended.wait)
    assert (slots.usable, slots.usable_for(on_cuda=False)) == (2, 2)
    assert slots.usable_for(on_cuda=True) == 1
    with slots.taken() as left:
        assert left.cuda_devices != second.cuda_devices
    ended.set()
