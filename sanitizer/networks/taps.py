"""Where features are taken from a network, and the hooks that take them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sanitizer.errors import InvalidSpec
from sanitizer.networks import preact_resnet, wide_resnet
from sanitizer.networks.normalized import NormalizedNetwork

TapLayout = Literal["nchw", "nhwc", "tokens"]


@dataclass(frozen=True)
class TapPoint:
    """A module whose output is a feature map."""

    module: str
    """Path within the network, without a `NormalizedNetwork` around it."""
    layout: TapLayout
    """How the output lies in memory. `tokens`: [B, 1 + H * W, C], the class token first."""
    grid: tuple[int, int]
    """Height and width."""
    channels: int


_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
_STAGES: Mapping[str, tuple[str, ...]] = {
    "wrn-": wide_resnet.STAGES,
    "preact_resnet": preact_resnet.STAGES,
    "cifar_resnet": preact_resnet.STAGES,
    "resnet": _RESNET_STAGES,
    "resnext": _RESNET_STAGES,
    "wide_resnet": _RESNET_STAGES,
    "regnet": tuple(f"trunk_output.block{i}" for i in range(1, 5)),
    # Residual too; and within its blocks windows of tokens look like feature maps.
    "maxvit": tuple(f"blocks.{i}" for i in range(4)),
}
"""Modules that are the stages of residual networks, by the beginning of the name."""

_HEADS = frozenset({"classifier", "fc", "head", "heads", "linear", "aux1", "aux2", "AuxLogits"})
_SMALL_PIXELS = 64 * 64
_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def find_taps(
    network: nn.Module, architecture: str, input_size: tuple[int, int], channels: int
) -> tuple[TapPoint, ...]:
    """The points whose features are aligned, in the order of the forward pass.

    On a residual network the outputs of its stages; on any other, the last module output at each
    spatial resolution, a token grid counting as one. Maps of a single pixel are left out, and so
    is the classifier. The shapes are those of a forward pass.

    Args:
        network: The network; it is left as it is.
        architecture: Its name in the catalog.
        input_size: Height and width of the images.
        channels: Of the images.

    Raises:
        InvalidSpec: Images of that size do not pass through the network, or leave no feature map.
    """
    inner = unwrapped(network)
    stages = next((s for start, s in _STAGES.items() if architecture.startswith(start)), None)
    candidates = [
        path
        for path, module in inner.named_modules()
        if path
        and (stages is None or path in stages)
        and path.partition(".")[0] not in _HEADS
        and not isinstance(module, _POOLING)
    ]
    outputs = _trace(inner, candidates, input_size, channels)
    maps = (_point(path, shape, architecture, input_size) for path, shape in outputs)
    points = [point for point in maps if point is not None]
    if stages is None:
        # A later output replaces an earlier one of its resolution, and takes a later place.
        last: dict[tuple[int, int], TapPoint] = {}
        for point in points:
            last.pop(point.grid, None)
            last[point.grid] = point
        points = list(last.values())
    points = [point for point in points if point.grid != (1, 1)]
    if not points:
        raise InvalidSpec(
            f"Images of {input_size[0]}x{input_size[1]} pixels leave no feature map larger than "
            f"one pixel in {architecture}. Give the input_size the model was trained with.",
            architecture=architecture,
            input_size=list(input_size),
        )
    return tuple(points)


def _trace(
    network: nn.Module, paths: Sequence[str], input_size: tuple[int, int], channels: int
) -> list[tuple[str, torch.Size]]:
    """Output shapes in the order of completion, from a pass of two images."""
    outputs: list[tuple[str, torch.Size]] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            # Of another batch size are tables that a module computes for itself (Swin v2).
            if isinstance(output, Tensor) and output.dim() in (3, 4) and output.shape[0] == 2:
                outputs.append((path, output.shape))

        return hook

    modes = [(module, module.training) for module in network.modules()]
    tensors = dict((*network.named_parameters(), *network.named_buffers()))
    # A pass of shapes alone imports torch's compiler, a second; small images are through by then.
    if input_size[0] * input_size[1] > _SMALL_PIXELS:
        tensors = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    handles = [network.get_submodule(p).register_forward_hook(note(p)) for p in paths]
    try:
        network.eval()
        like = next(iter(tensors.values()))
        images = torch.zeros(2, channels, *input_size, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            torch.func.functional_call(network, tensors, (images,))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InvalidSpec(
            f"Images of {input_size[0]}x{input_size[1]} pixels do not pass through the network: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Give the "
            "input_size the model was trained with.",
            input_size=list(input_size),
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return outputs


def _point(
    path: str, shape: torch.Size, architecture: str, input_size: tuple[int, int]
) -> TapPoint | None:
    """A module's output as a tap; None if it is no feature map."""
    if len(shape) == 3:
        if not architecture.startswith("vit_"):
            return None
        side = round((shape[1] - 1) ** 0.5)
        if side * side != shape[1] - 1:
            return None
        return TapPoint(path, "tokens", (side, side), shape[2])
    # Swin permutes right after its first convolution and back after its last norm.
    if architecture.startswith("swin") and _is_channels_last(path):
        layout, grid, width = "nhwc", (shape[1], shape[2]), shape[3]
    else:
        layout, grid, width = "nchw", (shape[2], shape[3]), shape[1]
    # What has not the proportions of the image is no map of it, but channels-last inner work.
    if abs(grid[0] * input_size[1] - grid[1] * input_size[0]) > max(input_size):
        return None
    return TapPoint(path, layout, grid, width)  # type: ignore[arg-type]  # one of the literals above


def _is_channels_last(path: str) -> bool:
    return path == "norm" or (path.startswith("features.") and path != "features.0.0")


@dataclass(frozen=True)
class _Output:
    original: Tensor
    version: int | None
    """Of `original` when it came out; torch counts up with each write in place. None: it does not
    count in inference mode, and `original` is a copy."""
    copy: Tensor | None


class Taps:
    """The feature maps of the last forward pass.

    What follows a tap may work in place on its output (an in-place ReLU, DenseNet's forward). So
    the first pass copies every output, and sees which of them were written over: only those are
    copied from then on.
    """

    def __init__(self, points: Sequence[TapPoint]) -> None:
        self.points = tuple(points)
        self._outputs: dict[str, _Output] = {}
        self._unchanged: set[str] = set()

    def take(self) -> list[Tensor]:
        """Feature maps [B, C, H, W], one per point; they are forgotten here.

        Raises:
            RuntimeError: There was no forward pass since the last call; or what was left alone in
                the passes before was written over in this one.
        """
        missing = [point.module for point in self.points if point.module not in self._outputs]
        if missing:
            raise RuntimeError(f"no forward pass went through {', '.join(missing)} since last time")
        maps = [_as_map(self._taken(point.module), point) for point in self.points]
        self._outputs.clear()
        return maps

    def _taken(self, module: str) -> Tensor:
        output = self._outputs[module]
        if output.version is None:
            return output.original
        if output.original._version == output.version:
            self._unchanged.add(module)
        elif output.copy is None:
            raise RuntimeError(
                f"the output of {module} was written over in this forward pass, not in those before"
            )
        return output.original if output.copy is None else output.copy

    def _hook(self, point: TapPoint) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            if output.is_inference():
                self._outputs[point.module] = _Output(output.clone(), None, None)
            else:
                copy = None if point.module in self._unchanged else output.clone()
                self._outputs[point.module] = _Output(output, output._version, copy)

        return keep


@contextmanager
def tapped(network: nn.Module, points: Sequence[TapPoint]) -> Iterator[Taps]:
    """Takes feature maps for as long as the context lasts; no hook outlives it.

    Args:
        network: A network, or a `NormalizedNetwork` around it.
        points: What `find_taps` found.
    """
    inner = unwrapped(network)
    taps = Taps(points)
    handles: list[RemovableHandle] = []
    try:
        for point in points:
            module = inner.get_submodule(point.module)
            handles.append(module.register_forward_hook(taps._hook(point)))
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def unwrapped(network: nn.Module) -> nn.Module:
    """The network within a `NormalizedNetwork`; any other as it is."""
    return network.network if isinstance(network, NormalizedNetwork) else network


def _as_map(output: Tensor, point: TapPoint) -> Tensor:
    match point.layout:
        case "nchw":
            return output
        case "nhwc":
            return output.permute(0, 3, 1, 2)
        case "tokens":
            return output[:, 1:].transpose(1, 2).reshape(len(output), -1, *point.grid)
