"""Which devices this worker has, found without touching CUDA, and who uses which."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from sanitizer.spec import Device


@dataclass(frozen=True)
class Slot:
    """A place for one run.

    Attributes:
        cuda_devices: The run's CUDA_VISIBLE_DEVICES; empty: it sees none.
    """

    number: int
    cuda_devices: str


def find_cuda_devices(
    environment: Mapping[str, str] = os.environ, folder: Path = Path("/dev")
) -> list[str]:
    """The CUDA devices that this process may use: by CUDA_VISIBLE_DEVICES, else all there are."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [
            name for name in (part.strip() for part in named.split(",")) if name not in ("", "-1")
        ]
    names = [path.name.removeprefix("nvidia") for path in folder.glob("nvidia[0-9]*")]
    # By position, not by name: CUDA counts those that are there, and a container that was given
    # the machine's fourth device alone calls it 0.
    return [str(position) for position, _ in enumerate(filter(str.isdecimal, names))]


def uses_cuda(device: Device, cuda_devices: Sequence[str]) -> bool:
    """Whether a worker that is set up for this device, on a machine with those, uses CUDA."""
    return device == Device.CUDA or (device == Device.AUTO and bool(cuda_devices))


class Slots:
    """The slots of a worker: one for each run at a time, the devices dealt out among them."""

    def __init__(self, count: int, device: Device, cuda_devices: Sequence[str]) -> None:
        self.uses_cuda = uses_cuda(device, cuda_devices)
        usable = list(cuda_devices) if self.uses_cuda else []
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for number in range(count):
            self._free.put(Slot(number, usable[number % len(usable)] if usable else ""))

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """A free slot, waited for if there is none."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)
