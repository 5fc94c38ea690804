"""Devices are found without touching CUDA, and dealt out among the slots."""

from pathlib import Path

import pytest

from sanitizer.spec import Device
from worker.devices import Slots, find_cuda_devices


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
