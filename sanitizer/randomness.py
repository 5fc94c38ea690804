"""Every random number is a function of (seed, stage, epoch, step), never of a global state.

That is what lets a run that was killed and resumed end in the same bytes as one that was not.
"""

from hashlib import blake2b

import torch

DRAWS = 3
"""Raised whenever the same seeds come to give other numbers: a run that an older version began is
then begun anew, lest it end in nobody's bytes."""


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`: drawn on the CPU, every device agrees."""
    return torch.Generator().manual_seed(derive_seed(*parts))
