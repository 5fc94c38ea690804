"""The classification networks of torchvision, by name.

torchvision takes a second to import and is imported when a network of its is built, not before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Family:
    """What the networks of one family have in common."""

    stem: str
    """The convolution that sees the image."""
    head: str
    """The layer whose outputs are the logits."""


ENTRIES: Mapping[str, int] = {
    "alexnet": 16,
    "convnext_base": 344,
    "convnext_large": 344,
    "convnext_small": 344,
    "convnext_tiny": 182,
    "densenet121": 606,
    "densenet161": 806,
    "densenet169": 846,
    "densenet201": 1006,
    "efficientnet_b0": 311,
    "efficientnet_b1": 439,
    "efficientnet_b2": 439,
    "efficientnet_b3": 496,
    "efficientnet_b4": 610,
    "efficientnet_b5": 738,
    "efficientnet_b6": 852,
    "efficientnet_b7": 1037,
    "efficientnet_v2_l": 1331,
    "efficientnet_v2_m": 963,
    "efficientnet_v2_s": 672,
    "googlenet": 287,
    "inception_v3": 472,
    "maxvit_t": 548,
    "mnasnet0_5": 262,
    "mnasnet0_75": 262,
    "mnasnet1_0": 262,
    "mnasnet1_3": 262,
    "mobilenet_v2": 262,
    "mobilenet_v3_large": 266,
    "mobilenet_v3_small": 210,
    "regnet_x_16gf": 357,
    "regnet_x_1_6gf": 297,
    "regnet_x_32gf": 372,
    "regnet_x_3_2gf": 402,
    "regnet_x_400mf": 357,
    "regnet_x_800mf": 267,
    "regnet_x_8gf": 372,
    "regnet_y_128gf": 540,
    "regnet_y_16gf": 369,
    "regnet_y_1_6gf": 540,
    "regnet_y_32gf": 407,
    "regnet_y_3_2gf": 426,
    "regnet_y_400mf": 331,
    "regnet_y_800mf": 293,
    "regnet_y_8gf": 350,
    "resnet101": 522,
    "resnet152": 777,
    "resnet18": 102,
    "resnet34": 182,
    "resnet50": 267,
    "resnext101_32x8d": 522,
    "resnext101_64x4d": 522,
    "resnext50_32x4d": 267,
    "shufflenet_v2_x0_5": 282,
    "shufflenet_v2_x1_0": 282,
    "shufflenet_v2_x1_5": 282,
    "shufflenet_v2_x2_0": 282,
    "squeezenet1_0": 52,
    "squeezenet1_1": 52,
    "swin_b": 353,
    "swin_s": 353,
    "swin_t": 185,
    "swin_v2_b": 449,
    "swin_v2_s": 449,
    "swin_v2_t": 233,
    "vgg11": 22,
    "vgg11_bn": 54,
    "vgg13": 26,
    "vgg13_bn": 66,
    "vgg16": 32,
    "vgg16_bn": 84,
    "vgg19": 38,
    "vgg19_bn": 102,
    "vit_b_16": 152,
    "vit_b_32": 152,
    "vit_h_14": 392,
    "vit_l_16": 296,
    "vit_l_32": 296,
    "wide_resnet101_2": 522,
    "wide_resnet50_2": 267,
}
"""Parameters and buffers by network, without batch counters and auxiliary heads.

They rule most networks out before any is built; a test holds them against torchvision.
"""

FAMILIES: Mapping[str, Family] = {
    "alexnet": Family("features.0", "classifier.6"),
    "convnext": Family("features.0.0", "classifier.2"),
    "densenet": Family("features.conv0", "classifier"),
    "efficientnet": Family("features.0.0", "classifier.1"),
    "googlenet": Family("conv1.conv", "fc"),
    "inception": Family("Conv2d_1a_3x3.conv", "fc"),
    "maxvit": Family("stem.0.0", "classifier.5"),
    "mnasnet": Family("layers.0", "classifier.1"),
    "mobilenet_v2": Family("features.0.0", "classifier.1"),
    "mobilenet_v3": Family("features.0.0", "classifier.3"),
    "regnet": Family("stem.0", "fc"),
    "resnet": Family("conv1", "fc"),
    "resnext": Family("conv1", "fc"),
    "shufflenet": Family("conv1.0", "fc"),
    "squeezenet": Family("features.0", "classifier.1"),
    "swin": Family("features.0.0", "head"),
    "vgg": Family("features.0", "classifier.6"),
    "vit": Family("conv_proj", "heads.head"),
    "wide_resnet": Family("conv1", "fc"),
}
"""By the beginning of the name."""

AUXILIARY: Mapping[str, tuple[str, ...]] = {
    "googlenet": ("aux1", "aux2"),
    "inception_v3": ("AuxLogits",),
}
"""Heads that only help training; a file has them or not."""

DEFAULT_CLASSES = 1000


def family(name: str) -> Family:
    """The family of a key of `ENTRIES`."""
    return next(found for start, found in FAMILIES.items() if name.startswith(start))


def count_entries(shapes: Shapes) -> int:
    """The number that `ENTRIES` gives, for a state dict."""
    aside = tuple(f"{head}." for heads in AUXILIARY.values() for head in heads)
    return sum(
        not name.endswith("num_batches_tracked") and not name.startswith(aside) for name in shapes
    )


def possible(shapes: Shapes) -> list[str]:
    """The networks that names and number of the weights do not rule out."""
    entries = count_entries(shapes)
    return [
        name
        for name, expected in ENTRIES.items()
        if expected == entries and _has_ends(name, shapes) == 2
    ]


def nearest(shapes: Shapes, limit: int) -> list[str]:
    """The networks most like a state dict, as far as can be told without building them."""
    entries = count_entries(shapes)
    return sorted(
        ENTRIES, key=lambda name: (-_has_ends(name, shapes), abs(ENTRIES[name] - entries), name)
    )[:limit]


def _has_ends(name: str, shapes: Shapes) -> int:
    ends = family(name)
    return (f"{ends.stem}.weight" in shapes) + (f"{ends.head}.weight" in shapes)


def build(
    name: str,
    num_classes: int,
    channels: int,
    *,
    shapes: Shapes | None = None,
    input_size: tuple[int, int] | None = None,
) -> nn.Module:
    """A network with torchvision's own initialisation, which draws from the global generator.

    Args:
        name: A key of `ENTRIES`.
        num_classes: Length of the logits.
        channels: Of the images. Where they are not 3, the first convolution is another one.
        shapes: Those of weights that are to fit: they tell whether there are auxiliary heads, and
            the image size of a vision transformer.
        input_size: Height and width, for the networks that are made for one size.

    Raises:
        ValueError: The network cannot be made for that size.
    """
    from torchvision.models import get_model

    settings: dict[str, Any] = {}
    if name in AUXILIARY:
        heads = AUXILIARY[name]
        settings["aux_logits"] = any(key.startswith(f"{heads[0]}.") for key in shapes or ())
        settings["init_weights"] = shapes is None
    elif name.startswith("vit_") and (size := _image_size(shapes or {}, input_size)) is not None:
        settings["image_size"] = size
    elif name.startswith("maxvit_") and input_size is not None:
        settings["input_size"] = input_size
    network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **settings)
    if channels != 3:
        _replace_stem(network, family(name).stem, channels)
    for path in AUXILIARY.get(name, ()):
        _silence(network, path)
    return network


def fixed_size(name: str, network: nn.Module) -> tuple[int, int] | None:
    """The only height and width that a network takes; None where it takes several."""
    if not name.startswith("vit_"):
        return None
    size = int(getattr(network, "image_size"))  # noqa: B009  # nn.Module types attributes as tensors
    return size, size


def _image_size(shapes: Shapes, input_size: tuple[int, int] | None) -> int | None:
    """Image side of a vision transformer: that of its position embedding, or of the request."""
    positions, patches = shapes.get("encoder.pos_embedding"), shapes.get("conv_proj.weight")
    if positions is not None and patches is not None and len(positions) == 3 and len(patches) == 4:
        side = math.isqrt(max(0, positions[1] - 1))
        return side * patches[-1] if side > 0 and side * side == positions[1] - 1 else None
    if input_size is not None and input_size[0] != input_size[1]:
        raise ValueError(f"a vision transformer takes square images, not {list(input_size)}")
    return None if input_size is None else input_size[0]


def _replace_stem(network: nn.Module, path: str, channels: int) -> None:
    old = network.get_submodule(path)
    if not isinstance(old, nn.Conv2d):
        raise TypeError(f"{path} is a {type(old).__name__}, expected the first convolution")
    parent, _, name = path.rpartition(".")
    new = nn.Conv2d(
        channels,
        old.out_channels,
        (old.kernel_size[0], old.kernel_size[1]),
        (old.stride[0], old.stride[1]),
        old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    setattr(network.get_submodule(parent), name, new)


def _silence(network: nn.Module, path: str) -> None:
    """Keeps an auxiliary head's weights but not its work: only logits come out, in training too."""
    network.aux_logits = False  # type: ignore[assignment]  # a flag of the two networks concerned
    head = getattr(network, path, None)
    if head is not None:
        head.forward = _no_logits


def _no_logits(_: torch.Tensor) -> None:
    return None
