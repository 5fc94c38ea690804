"""Which devices this worker has, found without touching CUDA, and who uses which."""

import os
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sanitizer.errors import NotEnoughDevices
from sanitizer.spec import Device
from service.settings import Settings

CHECK_SECONDS = 0.5
PROBE_SECONDS = 120.0
PROBE = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
"""As `sanitizer.compute` looks; in a process of its own, since this one never touches CUDA."""


class CudaUnusable(Exception):
    """This worker is set up for CUDA, and torch cannot use it here.

    A worker that started all the same would fail every job that it takes.
    """


@dataclass(frozen=True)
class Slot:
    """A place for one run.

    Attributes:
        number: Of several that one run has taken, the first one's.
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


def usable_cuda_devices(
    settings: Settings,
    environment: Mapping[str, str] = os.environ,
    folder: Path = Path("/dev"),
) -> list[str]:
    """The CUDA devices that runs of this worker can use, as torch sees them in a child process.

    None where the settings say `cpu`. With a `child_command` torch may be elsewhere: then those
    that are named, or there, are believed.

    Raises:
        CudaUnusable: The settings say `cuda`, and there are none.
    """
    if settings.device == Device.CPU:
        return []
    named = find_cuda_devices(environment, folder)
    must = settings.device == Device.CUDA
    if settings.child_command or not (named or must):
        return named
    count, said = _count_cuda_devices(environment)
    if must and count == 0:
        raise CudaUnusable(
            "SANITIZER_DEVICE is cuda, and torch finds no CUDA device that it can use "
            f"(CUDA_VISIBLE_DEVICES: {environment.get('CUDA_VISIBLE_DEVICES', 'not set')}). Look "
            "at the driver, the container's toolkit and torch's build, or set SANITIZER_DEVICE to "
            f"cpu or auto. {said}".rstrip()
        )
    # Where no device file tells of them, as on WSL, CUDA counts from 0.
    return named[:count] or [str(number) for number in range(count)]


def _count_cuda_devices(environment: Mapping[str, str]) -> tuple[int, str]:
    """How many torch can use, and what it says beside that."""
    command = [sys.executable, "-P", "-c", PROBE]
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0, f"It did not answer within {PROBE_SECONDS:.0f} s."
    words = done.stdout.split()
    count = int(words[-1]) if done.returncode == 0 and words and words[-1].isdecimal() else 0
    return count, done.stderr.strip()[-500:]


def uses_cuda(device: Device, cuda_devices: Sequence[str]) -> bool:
    """Whether a worker that is set up for this device, on a machine with those, uses CUDA."""
    return device == Device.CUDA or (device == Device.AUTO and bool(cuda_devices))


class Slots:
    """The slots of a worker: one for each run at a time, the devices dealt out among them.

    A run that shares several devices takes as many slots at once. Whoever asks first is served
    first: a run that waits for several is not passed by others that need fewer, and as nobody holds
    a part of what he waits for, no two wait for each other.
    """

    def __init__(self, count: int, device: Device, cuda_devices: Sequence[str]) -> None:
        self.uses_cuda = uses_cuda(device, cuda_devices)
        usable = list(cuda_devices) if self.uses_cuda else []
        self._free = [
            Slot(number, usable[number % len(usable)] if usable else "") for number in range(count)
        ]
        self._all = tuple(self._free)
        self._kept_numbers: set[int] = set()
        self._count = count
        self._devices = len({slot.cuda_devices for slot in self._free})
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._kept: dict[int, Callable[[], object]] = {}
        self._kept_count = 0

    @property
    def usable(self) -> int:
        """How many there are, taken or free, without those that are kept."""
        return self._count - self._kept_count

    def usable_for(self, *, on_cuda: bool) -> int:
        """How many devices one run can share here while some slots are kept."""
        if not (self.uses_cuda and on_cuda):
            return self.usable
        with self._changed:
            return len({slot.cuda_devices for slot in self._all} - self._lost())

    def _lost(self) -> set[str]:
        """Devices all of whose slots are kept."""
        left = {slot.cuda_devices for slot in self._all if slot.number not in self._kept_numbers}
        return {slot.cuda_devices for slot in self._all} - left

    def most(self, *, on_cuda: bool) -> int:
        """How many devices one run can share here."""
        return self._devices if self.uses_cuda and on_cuda else self._count

    @contextmanager
    def taken(
        self,
        count: int = 1,
        *,
        on_cuda: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Slot]:
        """Free slots, waited for if there are too few; as one, with the devices of all.

        Args:
            on_cuda: Whether each needs a device of its own, where this worker has any.
            check: Called now and then while it waits; raises if it shall not go on.

        Raises:
            NotEnoughDevices: There will never be so many.
        """
        most = self.most(on_cuda=on_cuda)
        if count > most:
            raise NotEnoughDevices(count, most, "of them for one job on this worker")
        slots = self._take(count, check, distinct=self.uses_cuda and on_cuda)
        try:
            yield Slot(
                slots[0].number, ",".join(slot.cuda_devices for slot in slots if slot.cuda_devices)
            )
        finally:
            until = self._kept.pop(slots[0].number, None)
            if until is None:
                self._give_back(slots)
            else:
                with self._changed:
                    self._kept_count += len(slots)
                    self._kept_numbers.update(self._numbers_of(slots))
                threading.Thread(
                    target=self._give_back_later, args=(slots, until), name="kept slot", daemon=True
                ).start()

    def keep(self, slot: Slot, until: Callable[[], object]) -> None:
        """Lets a slot that is taken be free only once `until` has returned, in a thread."""
        self._kept[slot.number] = until

    def _give_back_later(self, slots: Sequence[Slot], until: Callable[[], object]) -> None:
        until()
        with self._changed:
            self._kept_count -= len(slots)
            self._kept_numbers.difference_update(self._numbers_of(slots))
        self._give_back(slots)

    def _idlest(self, slots: Iterable[Slot]) -> list[Slot]:
        """Those first whose device has the most free slots: two runs share none needlessly."""
        free = Counter(slot.cuda_devices for slot in self._free)
        return sorted(slots, key=lambda slot: (-free[slot.cuda_devices], slot.number))

    @staticmethod
    def _numbers_of(slots: Sequence[Slot]) -> set[int]:
        return {slot.number for slot in slots}

    def _give_back(self, slots: Sequence[Slot]) -> None:
        with self._changed:
            self._free += slots
            self._changed.notify_all()

    def _take(self, count: int, check: Callable[[], None], *, distinct: bool) -> list[Slot]:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while True:
                    if self._waiting[0] is ticket:
                        # By device: two slots may share one, and a run needs as many as it asks.
                        free: dict[object, Slot] = {
                            slot.cuda_devices if distinct else slot.number: slot
                            for slot in self._free
                        }
                        if len(free) >= count:
                            slots = self._idlest(free.values())[:count]
                            self._free = [slot for slot in self._free if slot not in slots]
                            return slots
                    self._changed.wait(CHECK_SECONDS)
                    check()
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
