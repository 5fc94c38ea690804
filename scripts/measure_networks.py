"""Writes what one image costs in each network of the catalog: `sanitizer/cost/networks.json`.

    python -m scripts.measure_networks

Nothing is computed: the networks run on the meta device, where tensors have shapes and no numbers.
Run it again when a network is added or torchvision changes one.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sanitizer.catalog import ARCHITECTURES
from sanitizer.cost.profile import CLASSES, TABLE, NetworkProfile, Polynomial
from sanitizer.networks.registry import build_skeleton

BATCHES = (2, 4)
"""Their difference leaves out what does not grow with the batch: weights, statistics."""
DIGITS = 7


@dataclass(frozen=True)
class Pass:
    """One forward pass in training mode, of one image where not said otherwise."""

    macs: float
    saved_bytes: float
    widest_bytes: float
    operations: int
    """Of the whole batch."""


def measure(name: str, side: int) -> NetworkProfile:
    """The profile of a network, from images of one, two and three times this side."""
    sides = [side, 2 * side, 3 * side] if name.startswith("vit_") else [side, 2 * side]
    passes = [run(skeleton(name, s), s) for s in sides]
    pixels = [s * s for s in sides]
    network = skeleton(name, side)
    return NetworkProfile(
        state_bytes=state_bytes(network),
        class_bytes=state_bytes(network) - state_bytes(skeleton(name, side, CLASSES - 1)),
        operations=passes[0].operations,
        macs=fit(pixels, [p.macs for p in passes]),
        saved_bytes=fit(pixels, [p.saved_bytes for p in passes]),
        widest_bytes=fit(pixels, [p.widest_bytes for p in passes]),
    )


def skeleton(name: str, side: int, classes: int = CLASSES) -> nn.Module:
    """A network on the meta device."""
    return build_skeleton(name, classes, 3, input_size=(side, side)).to("meta").train()


def state_bytes(network: nn.Module) -> int:
    """Of all weights and buffers that a file has."""
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())


def run(network: nn.Module, side: int) -> Pass:
    """What one image of this side costs."""
    first, second = (_run_batch(network, side, batch) for batch in BATCHES)
    images = BATCHES[1] - BATCHES[0]
    return Pass(
        macs=(second.macs - first.macs) / images,
        saved_bytes=(second.saved_bytes - first.saved_bytes) / images,
        widest_bytes=(second.widest_bytes - first.widest_bytes) / images,
        operations=first.operations,
    )


def _run_batch(network: nn.Module, side: int, batch: int) -> Pass:
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor  # several views of one storage count once
        return tensor

    widest = 0

    def look(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        nonlocal widest
        tensors = [t for t in (*given, out) if isinstance(t, Tensor)]
        widest = max(widest, sum(t.numel() * t.element_size() for t in tensors))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    images = torch.empty(batch, 3, side, side, device="meta")
    with (
        FlopCounterMode(display=False) as counter,
        _OperationCounter() as operations,  # type: ignore[no-untyped-call]  # torch's own
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        network(images)
    for hook in hooks:
        hook.remove()
    return Pass(
        macs=counter.get_total_flops() / 2,
        saved_bytes=sum(tensor.untyped_storage().nbytes() for tensor in saved.values()),
        widest_bytes=widest,
        operations=operations.count,
    )


class _OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts what is computed; views of a tensor cost nothing."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],  # the signature is torch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def fit(pixels: Sequence[int], values: Sequence[float]) -> Polynomial:
    """The polynomial through two points, or three."""
    x, y = pixels, values
    slope = (y[1] - y[0]) / (x[1] - x[0])
    quadratic = 0.0
    if len(x) == 3:
        second = (y[2] - y[1]) / (x[2] - x[1])
        quadratic = (second - slope) / (x[2] - x[0])
    linear = slope - quadratic * (x[0] + x[1])
    constant = y[0] - linear * x[0] - quadratic * x[0] ** 2
    return Polynomial(*(float(f"{value:.{DIGITS}g}") for value in (constant, linear, quadratic)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(str(files("sanitizer.cost") / TABLE))
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args(arguments)
    rows = []
    for entry in ARCHITECTURES:
        if entry.family != "wrn":
            profile = measure(entry.name, entry.input_size[0])
            content = {
                "state_bytes": profile.state_bytes,
                "class_bytes": profile.class_bytes,
                "operations": profile.operations,
                "macs": profile.macs,
                "saved_bytes": profile.saved_bytes,
                "widest_bytes": profile.widest_bytes,
            }
            rows.append(f'"{entry.name}": {json.dumps(content)}')
    options.out.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
