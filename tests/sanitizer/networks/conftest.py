"""Small weights for the tests of reading, writing and recognising networks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sanitizer.networks.checkpoints import Checkpoint, Layout
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator


@pytest.fixture
def wrn_state() -> dict[str, Tensor]:
    """State dict of a WRN-10-1 with 7 classes."""
    network = build_network("wrn-10-1", 7, 3, make_generator("wrn"))
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def as_checkpoint(state: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint("pytorch", dict(state), Layout("zip"), [])


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
