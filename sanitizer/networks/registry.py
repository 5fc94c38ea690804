"""From weights to the network they belong to: by name, or found from their names and shapes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn

from sanitizer.catalog import ARCHITECTURES, similar_architectures
from sanitizer.errors import (
    ArchitectureMismatch,
    ArchitectureUnknown,
    InvalidSpec,
    UnreadableCheckpoint,
    some,
)
from sanitizer.networks import cifar_resnet, preact_resnet, torchvision_networks, wide_resnet
from sanitizer.networks.checkpoints import Checkpoint
from sanitizer.networks.normalized import NormalizedNetwork
from sanitizer.networks.skeleton import SkeletonMode, fill
from sanitizer.networks.taps import TapPoint, find_taps
from sanitizer.spec import ModelOptions

AUTO = "auto"

_WRN = re.compile(r"wrn-(\d{1,4})-(\d{1,3})")
_LISTED = 3
"""Candidates that an error names."""
_COMPARED = 4
"""torchvision networks that are built to find out which came closest: up to half a second each."""
_FEW = 6
"""Differences that an error names one by one."""
_COUNTER = "num_batches_tracked"
_OTHERS: Mapping[str, str] = {
    "Hugging Face's transformers": r"(^|\.)(embedder|embeddings)\.|encoder\.(layer|stages)\.\d",
    "timm": r"^(patch_embed|conv_stem|stem\.\d|stages\.\d|blocks\.\d+\.(attn|norm1|\d))",
}
"""Whose names, by what is found in them, where they are like no network of the catalog."""
_NORMALISING = r"(^|[._])(mean|mu|std|sigma)$"
"""Names of what a layer keeps that prepares images."""
_DEFAULT_CHANNELS = 3

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with the weights of a checkpoint, and what was found out about it."""

    network: NormalizedNetwork
    """In evaluation mode, on the CPU, float32."""
    architecture: str
    detected: bool
    """Whether the architecture was found from the weights."""
    num_classes: int
    channels: int
    input_size: tuple[int, int]
    """Height and width, pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    taps: tuple[TapPoint, ...]

    def state_for(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The weights as they are now, under the names of the checkpoint, ready to be written.

        They are copies on the CPU in the network's own dtype. What the network has and the
        checkpoint has not (batch counters of old files) is left out.
        """
        current = self.network.network.state_dict()
        return {name: current[name].detach().cpu().clone() for name in checkpoint.state}


@dataclass(frozen=True)
class _Fit:
    """A skeleton made for some weights, and how they differ from it."""

    architecture: str
    skeleton: nn.Module
    num_classes: int
    channels: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    @property
    def differences(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.architecture,
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "misshaped": len(self.misshaped),
        }


def load_network(checkpoint: Checkpoint, options: ModelOptions) -> LoadedNetwork:
    """Puts the weights of a checkpoint into the network they belong to.

    The number of classes and of input channels is read off the weights, which become float32
    whatever they were.

    Raises:
        ArchitectureUnknown: The name is in no catalog, or `auto` finds none or several.
        ArchitectureMismatch: The weights do not fit the architecture that the options name.
        InvalidSpec: `mean`, `std` or `input_size` do not suit the network.
        UnreadableCheckpoint: The weights are no classifier's.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
    detected = options.architecture.strip().lower() == AUTO
    if detected:
        fit = _detect(shapes, options.input_size)
    else:
        name = _known_name(options.architecture)
        fit = _compare(name, shapes, options.input_size)
        if not fit.is_exact:
            raise ArchitectureMismatch(
                name,
                missing=fit.missing,
                unexpected=fit.unexpected,
                misshaped=fit.misshaped,
            )
    if fit.num_classes < 2:
        raise UnreadableCheckpoint(
            f"The last layer of the {fit.architecture} has {fit.num_classes} outputs; a classifier "
            "has one for each of at least 2 classes."
        )
    input_size = _input_size(fit, options.input_size)
    mean, std = _normalisation(options, fit.channels)
    fill(fit.skeleton, _converted(fit, checkpoint.state))
    network = NormalizedNetwork(fit.skeleton, mean, std).eval()
    taps = find_taps(network, fit.architecture, input_size, fit.channels)
    return LoadedNetwork(
        network=network,
        architecture=fit.architecture,
        detected=detected,
        num_classes=fit.num_classes,
        channels=fit.channels,
        input_size=input_size,
        mean=mean,
        std=std,
        taps=taps,
    )


def build_network(
    name: str,
    num_classes: int,
    channels: int,
    generator: torch.Generator,
    *,
    input_size: tuple[int, int] | None = None,
) -> nn.Module:
    """A freshly initialised network, to be trained.

    Args:
        name: A name of the catalog.
        num_classes: Length of the logits.
        channels: Of the images.
        generator: What the initialisation depends on; the global generators are left as they were.
        input_size: Height and width, for the networks that are made for one size (`vit_*`,
            `maxvit_t`). None: their own.

    Raises:
        ArchitectureUnknown: The name is in no catalog.
        InvalidSpec: The network cannot be made for that size.
    """
    known = _known_name(name)
    seed = int(torch.randint(2**62, (), generator=generator))
    # The default generator alone is seeded: torch.manual_seed would reach the GPUs' too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _build(known, num_classes, channels, None, input_size)


def build_skeleton(
    name: str,
    num_classes: int,
    channels: int,
    *,
    input_size: tuple[int, int] | None = None,
) -> nn.Module:
    """As `build_network`, but without weights: their places are on the meta device.

    Raises:
        ArchitectureUnknown: The name is in no catalog.
        InvalidSpec: The network cannot be made for that size.
    """
    with SkeletonMode():
        return _build(_known_name(name), num_classes, channels, None, input_size)


# --- Names ---------------------------------------------------------------------------------------


def _known_name(name: str) -> str:
    """The name as the catalog spells it."""
    wanted = name.strip().lower()
    match = _WRN.fullmatch(wanted)
    if match is not None:
        depth, factor = int(match[1]), int(match[2])
        blocks, rest = divmod(depth - 4, 6)
        deep = rest == 0 and 1 <= blocks <= wide_resnet.MAX_BLOCKS
        if not deep or not 1 <= factor <= wide_resnet.MAX_WIDENING:
            raise ArchitectureUnknown(
                f"There is no {wanted}: a wrn-d-k has depth d = 6n + 4 (10, 16, 22, 28, 40, ...) "
                f"and a widening factor k of 1 to {wide_resnet.MAX_WIDENING}, such as wrn-28-10.",
                closest=[],
            )
        return f"wrn-{depth}-{factor}"
    names = [*preact_resnet.DEPTHS, *cifar_resnet.DEPTHS, *torchvision_networks.ENTRIES]
    if wanted in names:
        return wanted
    near = similar_architectures(wanted)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ArchitectureUnknown(
        f"There is no architecture called {name!r}. {hint}GET /v1/architectures lists all names; "
        "'auto' finds the architecture from the weights.",
        closest=[{"name": other} for other in near],
    )


def _catalog_size(name: str) -> tuple[int, int]:
    entries = {entry.name: entry.input_size for entry in ARCHITECTURES}
    return entries["wrn-d-k" if name.startswith("wrn-") else name]


# --- Building and comparing ----------------------------------------------------------------------


def _build(
    name: str,
    num_classes: int,
    channels: int,
    shapes: Shapes | None,
    input_size: tuple[int, int] | None,
) -> nn.Module:
    """A network; `shapes` are those of weights it is for, None for a fresh one."""
    if (match := _WRN.fullmatch(name)) is not None:
        return wide_resnet.WideResNet(int(match[1]), int(match[2]), num_classes, channels)
    if name in preact_resnet.DEPTHS:
        final_norm = "bn.weight" in (shapes or {})
        return preact_resnet.PreActResNet(name, num_classes, channels, final_norm=final_norm)
    if name in cifar_resnet.DEPTHS:
        names = cifar_resnet.names_in(shapes or {})
        return cifar_resnet.CifarResNet(name, num_classes, channels, names=names)
    try:
        return torchvision_networks.build(
            name, num_classes, channels, shapes=shapes, input_size=input_size
        )
    except ValueError as error:
        raise InvalidSpec(
            f"{name} cannot be made for images of {input_size}: {error}",
            architecture=name,
            input_size=input_size,
        ) from error


def _ends(name: str, shapes: Shapes) -> tuple[str, str]:
    """Keys of the first and the last layer's weights."""
    if name in cifar_resnet.DEPTHS:
        return "conv1.weight", f"{cifar_resnet.names_in(shapes).head}.weight"
    if name.startswith("wrn-"):
        return "conv1.weight", "fc.weight"
    if name in preact_resnet.DEPTHS:
        return "conv1.weight", "linear.weight"
    family = torchvision_networks.family(name)
    return f"{family.stem}.weight", f"{family.head}.weight"


def _compare(name: str, shapes: Shapes, input_size: tuple[int, int] | None = None) -> _Fit:
    """A skeleton with as many classes and channels as the weights have, and what still differs."""
    stem_key, head_key = _ends(name, shapes)
    head_path = head_key.removesuffix(".weight")
    place = _place_in_head(head_path, shapes)
    stem = shapes.get(stem_key, ())
    head = shapes.get(head_key if place is None else f"{head_path}.{place}.weight", ())
    num_classes = head[0] if len(head) in (2, 4) else torchvision_networks.DEFAULT_CLASSES
    channels = stem[1] if len(stem) == 4 and stem[1] > 0 else _DEFAULT_CHANNELS
    with SkeletonMode():
        skeleton = _build(name, num_classes, channels, shapes, input_size)
    if place is not None:
        _put_into_sequence(skeleton, head_path, place)
    expected = {key: tuple(tensor.shape) for key, tensor in skeleton.state_dict().items()}
    return _Fit(
        architecture=name,
        skeleton=skeleton,
        num_classes=num_classes,
        channels=channels,
        # Files written before torch 0.4.1 have no batch counters.
        missing=tuple(key for key in expected if key not in shapes and not key.endswith(_COUNTER)),
        unexpected=tuple(key for key in shapes if key not in expected),
        misshaped={
            key: (shape, tuple(shapes[key]))
            for key, shape in expected.items()
            if key in shapes and tuple(shapes[key]) != shape
        },
    )


def _place_in_head(head: str, shapes: Shapes) -> int | None:
    """The place of the one layer with weights where the head became a sequence, such as
    `Sequential(Dropout(), Linear())`, in which the others have none; None: it did not."""
    if f"{head}.weight" in shapes:
        return None
    inside = [key.removeprefix(f"{head}.") for key in shapes if key.startswith(f"{head}.")]
    places = {key.partition(".")[0] for key in inside}
    if len(places) != 1 or len(shapes.get(f"{head}.{(place := places.pop())}.weight", ())) != 2:
        return None
    return int(place) if re.fullmatch(r"\d", place) else None


def _put_into_sequence(network: nn.Module, head: str, place: int) -> None:
    """Puts a layer behind others that do nothing: dropout, most likely."""
    parent, _, name = head.rpartition(".")
    layers = [*(nn.Identity() for _ in range(place)), network.get_submodule(head)]
    setattr(network.get_submodule(parent), name, nn.Sequential(*layers))


def _with_plain_heads(shapes: Shapes) -> Shapes:
    """As `shapes`, but with the names that a head has which is no sequence."""
    heads = {"linear", *(family.head for family in torchvision_networks.FAMILIES.values())}
    places = {head: _place_in_head(head, shapes) for head in heads}
    renamed = {
        f"{head}.{place}.": f"{head}." for head, place in places.items() if place is not None
    }
    return {
        next(
            (new + key.removeprefix(old) for old, new in renamed.items() if key.startswith(old)),
            key,
        ): shape
        for key, shape in shapes.items()
    }


def _detect(shapes: Shapes, input_size: tuple[int, int] | None) -> _Fit:
    """The one architecture that fits.

    Raises:
        ArchitectureUnknown: None does, or several; with those that come closest, best first.
    """
    fits = _likely(shapes, input_size)
    exact = [fit for fit in fits if fit.is_exact]
    if len(exact) == 1:
        return exact[0]
    if exact:
        raise ArchitectureUnknown(
            "The weights fit more than one architecture: "
            f"{', '.join(fit.architecture for fit in exact)}. Name the one they were trained with.",
            closest=[fit.summary() for fit in exact],
        )
    compared = {fit.architecture for fit in fits}
    others = [
        name for name in torchvision_networks.nearest(shapes, _COMPARED) if name not in compared
    ]
    fits += [_compare(name, shapes) for name in others]
    closest = sorted(fits, key=lambda fit: fit.differences)[:_LISTED]
    told = _told_of_part(shapes, input_size) or _nearness(closest, shapes)
    raise ArchitectureUnknown(
        f"The {len(shapes)} weights fit no architecture of the catalog. "
        f"{told}GET /v1/architectures lists all.",
        closest=[fit.summary() for fit in closest],
    )


def _likely(shapes: Shapes, input_size: tuple[int, int] | None) -> list[_Fit]:
    """The networks that names and number of the weights do not rule out, compared with them."""
    # What is one network's sequence is another's head: classifier.1 of a MobileNet.
    readings = (shapes, _with_plain_heads(shapes))
    guesses = (wide_resnet.guess_name, preact_resnet.guess_name, cifar_resnet.guess_name)
    guessed = [guess(reading) for guess in guesses for reading in readings]
    possible = [name for reading in readings for name in torchvision_networks.possible(reading)]
    names = dict.fromkeys([*guessed, *possible])
    return [_compare(name, shapes, input_size) for name in names if name is not None]


def _told_of_part(shapes: Shapes, input_size: tuple[int, int] | None) -> str:
    """What to do where a network lies within another module and something lies beside it, such as
    a layer that normalises images, a loss or a moving average; empty where that is not so."""
    for first in dict.fromkeys(name.partition(".")[0] for name in shapes):
        within = [name for name in shapes if name.startswith(f"{first}.")]
        if 2 * len(within) < len(shapes):
            continue
        shared = commonprefix(within)  # noqa: RUF071  # it is cut at its last dot
        prefix = shared[: shared.rfind(".") + 1]
        inner = {name.removeprefix(prefix): shapes[name] for name in within}
        fit = next((fit for fit in _likely(inner, input_size) if fit.is_exact), None)
        if fit is None:
            continue
        beside = [name for name in shapes if not name.startswith(prefix)]
        prepares = any(re.search(_NORMALISING, name) for name in beside)
        return (
            f"{len(inner)} of them, those under {prefix!r}, are those of a {fit.architecture}; "
            f"beside them lie {some(beside)}. Save those of the network alone. "
            + ("Give the mean and std that lie beside them with the upload. " if prepares else "")
        )
    return ""


def _nearness(closest: Sequence[_Fit], shapes: Shapes) -> str:
    """What there is to say of the networks that come closest, or of where the names come from."""
    library = next(
        (name for name, keys in _OTHERS.items() if any(re.search(keys, key) for key in shapes)),
        None,
    )
    # Where half of the names are others there is nothing to compare.
    near = [fit for fit in closest if 2 * len(fit.unexpected) < len(shapes)]
    if library is not None and not (near and near[0].differences <= _FEW):
        return (
            f"Their names are those of {library}; read are torchvision's and those of the networks "
            "for small images. "
        )
    if not near:
        return "None has names like these. "
    listed = "; ".join(
        f"{fit.architecture} ({len(fit.missing)} keys missing, {len(fit.unexpected)} unexpected, "
        f"{len(fit.misshaped)} of another shape)"
        for fit in near
    )
    if near[0].differences > _FEW:
        return f"Closest come {listed}. Name the architecture to see which keys differ. "
    first = near[0]
    parts = [
        *(f"{key} is missing" for key in first.missing),
        *(f"{key} is not known" for key in first.unexpected),
        *(
            f"{key} is {_shape(received)} instead of {_shape(expected)}"
            for key, (expected, received) in first.misshaped.items()
        ),
    ]
    return f"Closest come {listed}. Of {first.architecture}, {', '.join(parts)}. "


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


# --- Filling -------------------------------------------------------------------------------------


def _converted(fit: _Fit, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the dtypes the network computes in.

    Raises:
        UnreadableCheckpoint: Integers stand where weights must, or other indices than the
            architecture defines: they say which memory is read.
    """
    expected = fit.skeleton.state_dict()
    converted = {}
    for name, tensor in state.items():
        like = expected[name]
        if like.is_floating_point() != tensor.is_floating_point():
            raise UnreadableCheckpoint(
                f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, expected were "
                f"{'floats' if like.is_floating_point() else 'integers'}: quantized weights are "
                "not supported, save the model in float32.",
                keys=[name],
            )
        fixed = not like.is_floating_point() and not name.endswith(_COUNTER)
        if fixed and not torch.equal(like, tensor.to(like.dtype)):
            raise UnreadableCheckpoint(
                f"{name} holds other indices than {fit.architecture} has. Export the model again.",
                keys=[name],
            )
        dtype = torch.float32 if like.is_floating_point() else like.dtype
        converted[name] = tensor.to(dtype, copy=True)
    return converted


def _input_size(fit: _Fit, wanted: tuple[int, int] | None) -> tuple[int, int]:
    fixed = torchvision_networks.fixed_size(fit.architecture, fit.skeleton)
    if fixed is None:
        return wanted or _catalog_size(fit.architecture)
    if wanted not in (None, fixed):
        raise InvalidSpec(
            f"The weights are those of a {fit.architecture} for images of {fixed[0]}x{fixed[1]} "
            f"pixels, the request says {wanted[0]}x{wanted[1]}. Leave input_size out.",
            architecture=fit.architecture,
            input_size=list(wanted),
        )
    return fixed


def _normalisation(
    options: ModelOptions, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != channels:
            raise InvalidSpec(
                f"{name} has {len(values)} values, but the weights are for images of {channels} "
                f"channels. Give one value per channel.",
                field=name,
                received=len(values),
                expected=channels,
            )
    return options.mean or (0.0,) * channels, options.std or (1.0,) * channels
