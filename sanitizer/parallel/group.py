"""The processes that share one run, and what they say to each other.

Each holds a whole replica of the network and a share of every batch. All that has to be the same
everywhere is made from the same numbers by everybody: losses from the gathered batch, steps from
the summed gradients. So there is no main process to wait for, and the result does not depend on
which process is asked.

A group is passed on explicitly. `ALONE`, the group of one process, does nothing at no cost.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# `import torch` has loaded it already.
from torch import distributed as dist

from sanitizer.errors import ProcessLost

PATIENCE = timedelta(days=7)
"""How long one waits for another. One that died is noticed at once, by its closed connection or by
the launcher, and one that decodes a large data set may well take an hour."""


class Group:
    """The processes of a run; as it stands, this one alone.

    Attributes:
        rank: Which of them this is, from 0.
        size: How many they are.
    """

    rank = 0
    size = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process speaks and writes files for all."""
        return self.rank == 0

    @property
    def seed_parts(self) -> tuple[int, ...]:
        """What sets this process's own random numbers (dropout) apart; nothing where it is alone,
        so that a run on one device stays what it was."""
        return (self.rank,) if self.size > 1 else ()

    def share(self, rows: int) -> slice:
        """The rows of a batch that are this process's: as many as the others', give or take one.

        Fewer rows than processes leave some with none.
        """
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def gather(self, shares: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Whole batches from everybody's shares, in order.

        Differentiable: the gradient of a share is that part of the whole's gradient, which is right
        where everybody derives the same loss from the whole.

        Args:
            shares: Each [share of rows, ...]; of all in one message.
            rows: Of the whole batch.

        Returns:
            Each [rows, ...], with the type that its share has.

        Raises:
            ProcessLost: Another process of the run has ended.
        """
        del rows  # the share is the whole
        return list(shares)

    def first(self, shares: Sequence[Tensor], rows: int, count: int) -> list[Tensor]:
        """This process's shares of the first rows of whole batches, for what needs no gradient.

        Args:
            shares: Each [share of rows, ...]; of all in one message.
            rows: Of a whole batch.
            count: Of the first ones.

        Returns:
            Each [share of count, ...].

        Raises:
            ProcessLost: Another process of the run has ended.
        """
        if count == rows:
            return list(shares)
        with torch.no_grad():
            return [whole[:count][self.share(count)] for whole in self.gather(shares, rows)]

    def sum(self, tensor: Tensor) -> Tensor:
        """Makes a tensor the sum of everybody's, in place, and returns it.

        Raises:
            ProcessLost: Another process of the run has ended.
        """
        return tensor

    def stack(self, tensor: Tensor) -> Tensor:
        """Everybody's tensor of one shape, [size, ...]. Not differentiable.

        Raises:
            ProcessLost: Another process of the run has ended.
        """
        return tensor.unsqueeze(0)

    def wait(self) -> None:
        """Waits until everybody is here.

        Raises:
            ProcessLost: Another process of the run has ended.
        """

    def from_leader(self, make: Callable[[], str]) -> str:
        """A text that the leader makes, for all.

        Raises:
            ProcessLost: Another process of the run has ended.
        """
        return make()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Everybody does what is in the block, the others once the leader has done it.

        For work that leaves files which the others then find.
        """
        if not self.is_leader:
            self.wait()
        yield
        if self.is_leader:
            self.wait()


ALONE = Group()


class JoinedGroup(Group):
    """Several processes, joined by torch.distributed; made by `joined`."""

    def __init__(self, rank: int, size: int, processes: "dist.ProcessGroup") -> None:
        self.rank = rank
        self.size = size
        self._processes = processes

    def gather(self, shares: Sequence[Tensor], rows: int) -> list[Tensor]:
        mine = self.share(rows)
        count = mine.stop - mine.start
        if any(len(share) != count for share in shares):
            raise ValueError(f"shares have {[len(s) for s in shares]} rows, of {rows} go {count}")
        kind = reduce(torch.promote_types, (share.dtype for share in shares))
        # Not `flatten(1)`, which cannot tell how long a row is where there is none.
        widths = [share.shape[1:].numel() for share in shares]
        message = torch.cat(
            [s.reshape(count, width).to(kind) for s, width in zip(shares, widths, strict=True)],
            dim=1,
        )
        whole: Tensor = _Gather.apply(message, self, rows)
        parts = torch.split_with_sizes(whole, widths, dim=1)
        return [
            part.reshape(rows, *share.shape[1:]).to(share.dtype)
            for part, share in zip(parts, shares, strict=True)
        ]

    def sum(self, tensor: Tensor) -> Tensor:
        with _others_may_be_lost():
            dist.all_reduce(tensor, group=self._processes)
        return tensor

    def stack(self, tensor: Tensor) -> Tensor:
        everybodys = tensor.new_empty((self.size, *tensor.shape))
        with _others_may_be_lost():
            dist.all_gather_into_tensor(
                everybodys, tensor.unsqueeze(0).contiguous(), group=self._processes
            )
        return everybodys

    def wait(self) -> None:
        # Not `barrier`, which would pick a GPU for it.
        self.sum(torch.zeros(1))

    def from_leader(self, make: Callable[[], str]) -> str:
        said = make().encode() if self.is_leader else b""
        length = int(self.sum(torch.tensor([len(said)])).item())
        content = bytearray(said.ljust(length, b"\0")) or bytearray(1)
        message = torch.frombuffer(content, dtype=torch.uint8)
        with _others_may_be_lost():
            dist.broadcast(message, src=0, group=self._processes)
        return bytes(message.tolist()[:length]).decode()


class _Gather(torch.autograd.Function):
    """Rows from everybody, [share, width] to [rows, width]."""

    @staticmethod
    def forward(ctx: Any, message: Tensor, group: JoinedGroup, rows: int) -> Tensor:
        ctx.mine = group.share(rows)
        longest = -(-rows // group.size)
        padded = message.new_zeros((longest, message.shape[1]))
        padded[: len(message)] = message
        everybodys = group.stack(padded)
        if longest * group.size == rows:
            return everybodys.flatten(0, 1)
        ends = [rows * rank // group.size for rank in range(group.size + 1)]
        lengths = [end - begin for begin, end in pairwise(ends)]
        return torch.cat([part[:n] for part, n in zip(everybodys, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient[ctx.mine], None, None


@contextmanager
def joined(meeting: Path, rank: int, size: int, device: torch.device) -> Iterator[Group]:
    """Joins the other processes of a run on this machine.

    They find each other by a file, and talk over the loopback interface (gloo, for tensors on the
    CPU) and by NCCL (for those on a GPU).

    Once the block is done, everybody waits for the others: nobody goes while he may be needed.

    Args:
        meeting: The file; in a folder that is theirs alone, and not there before the run.
        device: Of this process.

    Raises:
        ProcessLost: Another one has ended.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    # Read once, when the connections are made; without, gloo looks up the host's name and listens
    # where that leads.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    with _others_may_be_lost():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(meeting), size),  # type: ignore[attr-defined]  # documented
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            device_id=device if on_gpu else None,
        )
    processes = dist.group.WORLD
    if processes is None:
        raise RuntimeError("torch has joined no group")
    group = JoinedGroup(rank, size, processes)
    yield group
    # Not where something has gone wrong: it could wait for those that are gone, and who fails ends.
    group.wait()
    dist.destroy_process_group()


@contextmanager
def _others_may_be_lost() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's, and the base of torch.distributed's own
        raise ProcessLost(
            "Another of the processes that share this run has ended, or cannot be reached. Run it "
            "again, or ask for fewer devices.",
            reason=str(error),
        ) from error
