"""Names, descriptions and JSON schemas of what a job can ask for.

Torch-free, so that the API can serve it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import getdoc
from typing import Any

from pydantic import BaseModel

from sanitizer import spec


@dataclass(frozen=True)
class CatalogEntry:
    """One thing a job can name."""

    name: str
    description: str
    config: type[BaseModel]
    presets: tuple[str, ...] = ()

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of its settings."""
        return self.config.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        """The settings with a default, at that default."""
        return {
            name: value
            for name, field in self.config.model_fields.items()
            if not field.is_required()
            for value in [_jsonable(field.get_default(call_default_factory=True))]
        }


@dataclass(frozen=True)
class ArchitectureEntry:
    """One architecture, or a family of them with numbers in the name."""

    name: str
    family: str
    description: str
    input_size: tuple[int, int]


def _jsonable(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _entry(config: type[BaseModel], key: str, presets: Sequence[str] = ()) -> CatalogEntry:
    name = config.model_fields[key].default
    return CatalogEntry(name, " ".join((getdoc(config) or "").split()), config, tuple(presets))


METHODS: tuple[CatalogEntry, ...] = tuple(
    _entry(
        config,
        "name",
        [
            preset
            for method, preset in spec.PRESETS
            if method == config.model_fields["name"].default
        ],
    )
    for config in (
        spec.FinetuneConfig,
        spec.NadConfig,
        spec.ArgdConfig,
        spec.FinePruningConfig,
        spec.AnpConfig,
        spec.ClpConfig,
        spec.FtSamConfig,
        spec.FstConfig,
        spec.IBauConfig,
        spec.McrConfig,
        spec.AutoConfig,
    )
)

ATTACKS: tuple[CatalogEntry, ...] = tuple(
    _entry(config, "kind")
    for config in (
        spec.PatchProbe,
        spec.BlendProbe,
        spec.SinusoidProbe,
        spec.ImageMaskProbe,
        spec.WarpProbe,
        spec.ReflectionProbe,
        spec.InputAwareProbe,
    )
)

_TORCHVISION: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "alexnet": (
        "AlexNet (arXiv 1404.5997)",
        {
            "alexnet": 224,
        },
    ),
    "convnext": (
        "ConvNeXt (arXiv 2201.03545)",
        {
            "convnext_base": 224,
            "convnext_large": 224,
            "convnext_small": 224,
            "convnext_tiny": 224,
        },
    ),
    "densenet": (
        "DenseNet (arXiv 1608.06993)",
        {
            "densenet121": 224,
            "densenet161": 224,
            "densenet169": 224,
            "densenet201": 224,
        },
    ),
    "efficientnet": (
        "EfficientNet (arXiv 1905.11946)",
        {
            "efficientnet_b0": 224,
            "efficientnet_b1": 240,
            "efficientnet_b2": 288,
            "efficientnet_b3": 300,
            "efficientnet_b4": 380,
            "efficientnet_b5": 456,
            "efficientnet_b6": 528,
            "efficientnet_b7": 600,
        },
    ),
    "efficientnet_v2": (
        "EfficientNetV2 (arXiv 2104.00298)",
        {
            "efficientnet_v2_l": 480,
            "efficientnet_v2_m": 480,
            "efficientnet_v2_s": 384,
        },
    ),
    "googlenet": (
        "GoogLeNet (arXiv 1409.4842)",
        {
            "googlenet": 224,
        },
    ),
    "inception": (
        "Inception v3 (arXiv 1512.00567)",
        {
            "inception_v3": 299,
        },
    ),
    "maxvit": (
        "MaxViT (arXiv 2204.01697)",
        {
            "maxvit_t": 224,
        },
    ),
    "mnasnet": (
        "MNASNet (arXiv 1807.11626)",
        {
            "mnasnet0_5": 224,
            "mnasnet0_75": 224,
            "mnasnet1_0": 224,
            "mnasnet1_3": 224,
        },
    ),
    "mobilenet_v2": (
        "MobileNetV2 (arXiv 1801.04381)",
        {
            "mobilenet_v2": 224,
        },
    ),
    "mobilenet_v3": (
        "MobileNetV3 (arXiv 1905.02244)",
        {
            "mobilenet_v3_large": 224,
            "mobilenet_v3_small": 224,
        },
    ),
    "regnet": (
        "RegNet (arXiv 2003.13678)",
        {
            "regnet_x_16gf": 224,
            "regnet_x_1_6gf": 224,
            "regnet_x_32gf": 224,
            "regnet_x_3_2gf": 224,
            "regnet_x_400mf": 224,
            "regnet_x_800mf": 224,
            "regnet_x_8gf": 224,
            "regnet_y_128gf": 224,
            "regnet_y_16gf": 224,
            "regnet_y_1_6gf": 224,
            "regnet_y_32gf": 224,
            "regnet_y_3_2gf": 224,
            "regnet_y_400mf": 224,
            "regnet_y_800mf": 224,
            "regnet_y_8gf": 224,
        },
    ),
    "resnet": (
        "ResNet (arXiv 1512.03385)",
        {
            "resnet101": 224,
            "resnet152": 224,
            "resnet18": 224,
            "resnet34": 224,
            "resnet50": 224,
        },
    ),
    "resnext": (
        "ResNeXt (arXiv 1611.05431)",
        {
            "resnext101_32x8d": 224,
            "resnext101_64x4d": 224,
            "resnext50_32x4d": 224,
        },
    ),
    "shufflenet_v2": (
        "ShuffleNetV2 (arXiv 1807.11164)",
        {
            "shufflenet_v2_x0_5": 224,
            "shufflenet_v2_x1_0": 224,
            "shufflenet_v2_x1_5": 224,
            "shufflenet_v2_x2_0": 224,
        },
    ),
    "squeezenet": (
        "SqueezeNet (arXiv 1602.07360)",
        {
            "squeezenet1_0": 224,
            "squeezenet1_1": 224,
        },
    ),
    "swin": (
        "Swin Transformer (arXiv 2103.14030)",
        {
            "swin_b": 224,
            "swin_s": 224,
            "swin_t": 224,
        },
    ),
    "swin_v2": (
        "Swin Transformer V2 (arXiv 2111.09883)",
        {
            "swin_v2_b": 256,
            "swin_v2_s": 256,
            "swin_v2_t": 256,
        },
    ),
    "vgg": (
        "VGG (arXiv 1409.1556)",
        {
            "vgg11": 224,
            "vgg11_bn": 224,
            "vgg13": 224,
            "vgg13_bn": 224,
            "vgg16": 224,
            "vgg16_bn": 224,
            "vgg19": 224,
            "vgg19_bn": 224,
        },
    ),
    "vit": (
        "Vision Transformer (arXiv 2010.11929)",
        {
            "vit_b_16": 224,
            "vit_b_32": 224,
            "vit_h_14": 224,
            "vit_l_16": 224,
            "vit_l_32": 224,
        },
    ),
    "wide_resnet": (
        "Wide ResNet for ImageNet (arXiv 1605.07146)",
        {
            "wide_resnet101_2": 224,
            "wide_resnet50_2": 224,
        },
    ),
}
"""What torchvision calls its classification networks, by family: description, input side by name.

Literals, since asking torchvision would load torch; a test holds them against it.
"""

ARCHITECTURES: tuple[ArchitectureEntry, ...] = (
    ArchitectureEntry(
        "wrn-d-k",
        "wrn",
        "Wide residual network for small images (arXiv 1605.07146), depth d = 6n + 4 and widening "
        "factor k, such as wrn-16-1 or wrn-28-10.",
        (32, 32),
    ),
    *(
        ArchitectureEntry(
            f"preact_resnet{depth}",
            "preact_resnet",
            "Pre-activation ResNet for small images (arXiv 1603.05027).",
            (32, 32),
        )
        for depth in (18, 34, 50, 101, 152)
    ),
    *(
        ArchitectureEntry(
            f"cifar_resnet{depth}",
            "cifar_resnet",
            "ResNet for small images: a 3x3 stem of stride 1 and no pooling after it (arXiv "
            "1512.03385).",
            (32, 32),
        )
        for depth in (18, 34, 50, 101, 152)
    ),
    *(
        ArchitectureEntry(name, family, f"{description}, as in torchvision.", (side, side))
        for family, (description, sides) in _TORCHVISION.items()
        for name, side in sides.items()
    ),
)
"""What `ModelOptions.architecture` can name besides `auto`; sizes hold where none is given."""


def similar_architectures(name: str) -> list[str]:
    """Names that one which is none may have been meant to be, likeliest first; three at most."""
    known = [entry.name for entry in ARCHITECTURES if entry.name != "wrn-d-k"]
    known += ["wrn-16-1", "wrn-28-10"]
    return get_close_matches(name.strip().lower(), known, n=3, cutoff=0.5)
