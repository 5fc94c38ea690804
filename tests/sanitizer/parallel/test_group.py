"""What the processes of a group say to each other, in real ones over gloo."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sanitizer.parallel.group import ALONE, Group, JoinedGroup
from tests.sanitizer.parallel.conftest import Processes

SIZES = [(2, 6), (2, 7), (3, 7), (3, 2)]
"""Processes and rows: even, uneven, and fewer rows than processes."""


def whole_batch(rows: int) -> Tensor:
    return torch.arange(rows * 3 * 2, dtype=torch.float32).reshape(rows, 3, 2)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 64, 65])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_row_is_in_one_share_and_shares_are_as_large_as_each_other(
    rows: int, size: int
) -> None:
    shares = [JoinedGroup(rank, size, None).share(rows) for rank in range(size)]  # type: ignore[arg-type]  # says nothing
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def gather(group: Group, rows: int) -> tuple[list[Tensor], Tensor]:
    whole = whole_batch(rows)
    mine = whole[group.share(rows)].clone().requires_grad_()
    labels = torch.arange(rows)[group.share(rows)]
    halves = mine.detach()[:, :, 0].to(torch.bfloat16)
    gathered = group.gather([mine, halves], rows)
    numbers = group.gather([labels], rows)
    weighted = gathered[0].square() * torch.arange(1, rows + 1).view(-1, 1, 1)
    weighted.sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert mine.grad is not None
    return [tensor.detach() for tensor in (*gathered, *numbers)], mine.grad


@pytest.mark.parametrize(("size", "rows"), SIZES)
def test_gathered_batch_is_the_whole_one_and_gives_each_share_its_gradient(
    processes: Processes, size: int, rows: int
) -> None:
    (whole, halves, labels), gradient = gather(ALONE, rows)
    results = processes.together(size, gather, rows)
    for (theirs, their_halves, their_labels), _ in results:
        assert torch.equal(theirs, whole)
        assert torch.equal(their_halves, halves)
        assert their_halves.dtype == torch.bfloat16
        assert torch.equal(their_labels, labels)
        assert their_labels.dtype == torch.int64
    assert torch.equal(torch.cat([share for _, share in results]), gradient)


def hear(group: Group) -> list[str]:
    return [
        group.from_leader(lambda: f"sprich, Nr. {group.rank} \N{SNOWMAN}"),
        group.from_leader(str),
    ]


def test_all_hear_what_the_leader_says(processes: Processes) -> None:
    said = ["sprich, Nr. 0 \N{SNOWMAN}", ""]
    assert processes.together(2, hear) == [said, said]


def find_or_make(group: Group, path: Path) -> str:
    with group.leader_first():
        if not path.exists():
            path.write_text(str(group.rank))
        return path.read_text()


def test_others_find_what_the_leader_has_made_first(processes: Processes, tmp_path: Path) -> None:
    found = [processes.together(2, find_or_make, tmp_path / str(i)) for i in range(5)]
    assert found == [["0", "0"]] * 5


def test_share_of_another_size_is_refused() -> None:
    group = JoinedGroup(0, 2, None)  # type: ignore[arg-type]  # it fails before it says anything
    with pytest.raises(ValueError, match=r"shares have \[4\] rows, of 7 go 3"):
        group.gather([torch.zeros(4, 1)], 7)


def test_one_alone_has_the_whole_batch_and_no_seed_of_its_own() -> None:
    batch = torch.ones(4, 2)
    assert ALONE.gather([batch], 4) == [batch]
    assert batch[ALONE.share(4)].shape == (4, 2)
    assert ALONE.seed_parts == ()
    assert ALONE.is_leader
