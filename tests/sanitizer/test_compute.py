import subprocess
import sys

import pytest
import torch

from sanitizer import compute
from sanitizer.compute import images_at_once
from sanitizer.errors import DeviceUnavailable
from sanitizer.spec import Device, Precision

CPU = torch.device("cpu")


def test_what_is_asked_for_is_what_networks_compute_in() -> None:
    assert compute.choose_precision(Precision.FLOAT32, CPU) == torch.float32
    assert compute.choose_precision(Precision.BFLOAT16, CPU) == torch.bfloat16


def test_auto_takes_bfloat16_where_the_processor_multiplies_it() -> None:
    chosen = compute.choose_precision(Precision.AUTO, CPU)
    assert (chosen == torch.bfloat16) == compute.has_bfloat16(CPU)


@pytest.mark.parametrize(
    ("name", "features", "faster"),
    [
        ("AMD EPYC", {"avx512_bf16"}, True),
        ("Intel Xeon", {"avx512_bf16"}, False),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16"}, True),
        ("Neoverse-V1", {"bf16"}, True),
        ("AMD EPYC", {"avx2"}, False),
    ],
)
def test_bfloat16_counts_where_it_is_faster(
    name: str, features: set[str], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {"cpu_name": name, **dict.fromkeys(features, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert compute.has_bfloat16(CPU) == faster


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(DeviceUnavailable, match="Ask for cpu or auto"):
        compute.choose_device(Device.CUDA)


FAULTS = """
import resource, sys, torch
from sanitizer.compute import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    return [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_kept_memory_is_not_cleared_by_the_kernel_again() -> None:
    # 20 rounds of 8 x 4 MiB are 164,000 pages, if every one of them is touched anew.
    assert faults("keep") < 20_000


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 8, 8), 250), ((3, 96, 96), 250), ((3, 224, 224), 45), ((3, 2048, 2048), 1)],
)
def test_of_large_images_fewer_go_through_together(shape: tuple[int, int, int], count: int) -> None:
    assert images_at_once(shape, 250) == count
