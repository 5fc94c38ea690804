"""What is written down about torchvision's networks, held against torchvision."""

import pytest
import torch
from torchvision import models

from sanitizer import catalog
from sanitizer.networks.skeleton import SkeletonMode
from sanitizer.networks.torchvision_networks import (
    AUXILIARY,
    ENTRIES,
    build,
    count_entries,
    family,
)

UNUSUAL = 7919
"""No other size in any network."""

NAMES: list[str] = models.list_models(module=models)

A_FEW = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_800mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
    "wide_resnet50_2",
]
"""One of each family."""
SMALL = ("wrn", "preact_resnet", "cifar_resnet")
"""Families that are not torchvision's."""


def test_the_names_are_those_of_torchvision() -> None:
    assert sorted(ENTRIES) == sorted(NAMES)


def test_the_catalog_lists_every_torchvision_network_with_its_input_size() -> None:
    listed = {
        entry.name: entry.input_size for entry in catalog.ARCHITECTURES if entry.family not in SMALL
    }

    assert listed == {name: _trained_on(name) for name in NAMES}


def _trained_on(name: str) -> tuple[int, int]:
    """Of the first weights that were trained at one size throughout."""
    weights = {w.name: w for w in models.get_model_weights(name)}
    first = weights.get("IMAGENET1K_V1") or weights["IMAGENET1K_SWAG_LINEAR_V1"]
    (side,) = first.transforms().crop_size
    return side, side


def test_the_catalog_lists_the_networks_for_small_images() -> None:
    listed = [e.name for e in catalog.ARCHITECTURES if e.family in SMALL]

    depths = (18, 34, 50, 101, 152)
    assert listed == [
        "wrn-d-k",
        *(f"preact_resnet{d}" for d in depths),
        *(f"cifar_resnet{d}" for d in depths),
    ]


@pytest.mark.parametrize("name", A_FEW)
def test_the_ends_of_a_family_are_where_they_are_said_to_be(name: str) -> None:
    with SkeletonMode():
        network = build(name, UNUSUAL, 5)
    state = network.state_dict()
    heads = {key for key, tensor in state.items() if UNUSUAL in tensor.shape}

    assert f"{family(name).head}.weight" in heads
    assert {key.rpartition(".")[0] for key in heads} == {family(name).head}
    assert state[f"{family(name).stem}.weight"].shape[1] == 5


@pytest.mark.parametrize("name", A_FEW)
def test_the_number_of_weights_is_as_written(name: str) -> None:
    with SkeletonMode():
        state = build(name, 10, 3).state_dict()

    assert count_entries({key: tuple(t.shape) for key, t in state.items()}) == ENTRIES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(A_FEW)))
def test_the_number_of_weights_is_as_written_for_the_rest(name: str) -> None:
    with SkeletonMode():
        state = build(name, 10, 3).state_dict()

    assert count_entries({key: tuple(t.shape) for key, t in state.items()}) == ENTRIES[name]


@pytest.mark.parametrize("name", sorted(AUXILIARY))
def test_auxiliary_heads_are_not_counted(name: str) -> None:
    with_heads = {f"{head}.fc.weight": (1, 1) for head in AUXILIARY[name]}
    with SkeletonMode():
        state = build(name, 10, 3, shapes=with_heads).state_dict()

    assert count_entries({key: tuple(t.shape) for key, t in state.items()}) == ENTRIES[name]
    assert all(any(key.startswith(f"{head}.") for key in state) for head in AUXILIARY[name])


def test_a_skeleton_holds_no_memory_and_draws_no_number() -> None:
    before = torch.get_rng_state()

    with SkeletonMode():
        network = build("vit_h_14", 10, 3)

    assert all(parameter.is_meta for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)
