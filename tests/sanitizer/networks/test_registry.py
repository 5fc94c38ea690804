"""Finding the network that weights belong to, and putting them into it."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sanitizer.errors import (
    ArchitectureMismatch,
    ArchitectureUnknown,
    InvalidSpec,
    UnreadableCheckpoint,
)
from sanitizer.networks import preact_resnet
from sanitizer.networks.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from sanitizer.networks.registry import build_network, load_network
from sanitizer.networks.skeleton import SkeletonMode
from sanitizer.networks.torchvision_networks import ENTRIES
from sanitizer.randomness import make_generator
from sanitizer.spec import ModelOptions
from tests.sanitizer.networks.conftest import as_checkpoint, equal

State = dict[str, Tensor]


def _zeros(name: str, num_classes: int, channels: int = 3) -> State:
    """Weights of the right shapes without the time an initialisation takes."""
    with SkeletonMode():
        network = build_network(name, num_classes, channels, make_generator(name))
    return {
        key: torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
        for key, tensor in network.state_dict().items()
    }


def _weightless(name: str, num_classes: int) -> State:
    """The same without the memory: every element of a tensor is one and the same."""
    with SkeletonMode():
        network = build_network(name, num_classes, 3, make_generator(name))
    return {
        key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for key, tensor in network.state_dict().items()
    }


# --- auto ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("wrn-16-1", 3),
        ("wrn-10-4", 1),
        ("wrn-40-2", 3),
        ("preact_resnet18", 3),
        ("preact_resnet50", 1),
        ("cifar_resnet18", 3),
        ("cifar_resnet50", 1),
        ("resnet18", 3),
        ("resnet50", 1),
        ("resnext50_32x4d", 3),
        ("mobilenet_v2", 3),
        ("mnasnet0_75", 3),
        ("mobilenet_v3_small", 3),
        ("efficientnet_b0", 3),
        ("densenet121", 3),
        ("shufflenet_v2_x0_5", 3),
        ("squeezenet1_1", 3),
        ("regnet_y_400mf", 3),
        ("swin_t", 3),
        ("convnext_tiny", 3),
    ],
)
def test_an_architecture_is_found_from_its_weights(name: str, channels: int) -> None:
    loaded = load_network(
        as_checkpoint(_zeros(name, 7, channels)), ModelOptions(input_size=(64, 64))
    )

    assert (loaded.architecture, loaded.detected) == (name, True)
    assert (loaded.num_classes, loaded.channels) == (7, channels)
    assert loaded.taps


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_torchvision_network_is_found_from_its_shapes(name: str) -> None:
    state = _weightless(name, 7)
    # One weight too many, so that the answer comes before the weights are copied.
    state["one.too.many"] = torch.zeros(1)

    with pytest.raises(ArchitectureUnknown) as caught:
        load_network(as_checkpoint(state), ModelOptions())

    assert caught.value.data["closest"][0] == {
        "name": name,
        "missing": 0,
        "unexpected": 1,
        "misshaped": 0,
    }


def test_a_vision_transformer_says_its_own_input_size() -> None:
    with SkeletonMode():
        network = build_network("vit_b_32", 7, 3, make_generator(0), input_size=(96, 96))
    state = {k: torch.zeros(v.shape) for k, v in network.state_dict().items()}

    loaded = load_network(as_checkpoint(state), ModelOptions())

    assert (loaded.architecture, loaded.input_size) == ("vit_b_32", (96, 96))
    assert loaded.network(torch.rand(1, 3, 96, 96)).shape == (1, 7)


def test_a_vision_transformer_does_not_take_another_size() -> None:
    with pytest.raises(InvalidSpec, match="224x224"):
        load_network(as_checkpoint(_zeros("vit_b_32", 7)), ModelOptions(input_size=(32, 32)))


@pytest.mark.parametrize("final_norm", [False, True])
def test_a_final_norm_is_read_off_the_keys(final_norm: bool) -> None:
    state = _zeros("preact_resnet18", 7)
    if final_norm:
        state |= {f"bn.{key}": torch.ones(512) for key in ("weight", "bias")}
        state |= {f"bn.running_{key}": torch.ones(512) for key in ("mean", "var")}

    loaded = load_network(as_checkpoint(state), ModelOptions())

    assert loaded.architecture == "preact_resnet18"
    assert ("bn.weight" in loaded.network.network.state_dict()) == final_norm


def test_weights_of_no_network_name_the_closest(wrn_state: State) -> None:
    del wrn_state["fc.bias"]
    wrn_state["extra.weight"] = torch.ones(3)

    with pytest.raises(ArchitectureUnknown) as caught:
        load_network(as_checkpoint(wrn_state), ModelOptions())

    closest = caught.value.data["closest"]
    assert closest[0] == {"name": "wrn-10-1", "missing": 1, "unexpected": 1, "misshaped": 0}
    assert len(closest) == 3
    differences = [c["missing"] + c["unexpected"] + c["misshaped"] for c in closest]
    assert differences == sorted(differences)
    assert "wrn-10-1 (1 keys missing, 1 unexpected, 0 of another shape)" in caught.value.message


def test_a_changed_resnet_names_its_original_first() -> None:
    state = _zeros("resnet18", 10)
    state["conv1.weight"] = torch.zeros(64, 3, 5, 5)

    with pytest.raises(ArchitectureUnknown) as caught:
        load_network(as_checkpoint(state), ModelOptions())

    assert "Of resnet18, conv1.weight is 64x3x5x5 instead of 64x3x7x7." in caught.value.message
    assert caught.value.data["closest"][0] == {
        "name": "resnet18",
        "missing": 0,
        "unexpected": 0,
        "misshaped": 1,
    }


@pytest.mark.parametrize(
    ("name", "head", "layers"),
    [
        ("resnet18", "fc", [nn.Dropout(0.5), nn.Linear(512, 7)]),
        ("preact_resnet18", "linear", [nn.Linear(512, 7)]),
        ("cifar_resnet18", "linear", [nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 7)]),
        ("mobilenet_v2", "classifier.1", [nn.Dropout(0.5), nn.Linear(1280, 7)]),
        ("densenet121", "classifier", [nn.Dropout(0.5), nn.Linear(1024, 7)]),
    ],
    ids=["resnet18", "preact_resnet18", "cifar_resnet18", "mobilenet_v2", "densenet121"],
)
def test_a_head_that_became_a_sequence_is_read(
    name: str, head: str, layers: list[nn.Module]
) -> None:
    """As people do who fine-tune a network to classes of their own."""
    theirs = build_network(name, 1000, 3, make_generator("head"))
    parent, _, last = head.rpartition(".")
    setattr(theirs.get_submodule(parent), last, nn.Sequential(*layers))
    theirs.eval()
    checkpoint = as_checkpoint(dict(theirs.state_dict()))

    loaded = load_network(checkpoint, ModelOptions(input_size=(32, 32)))

    assert (loaded.architecture, loaded.num_classes) == (name, 7)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(images), theirs(images))
    assert list(loaded.state_for(checkpoint)) == list(checkpoint.state)
    by_name = load_network(checkpoint, ModelOptions(architecture=name, input_size=(32, 32)))
    assert by_name.num_classes == 7


def test_a_head_of_two_layers_is_not_guessed_at() -> None:
    """Nothing in the weights says what lies between them."""
    state = _zeros("resnet18", 10)
    del state["fc.weight"], state["fc.bias"]
    state |= {"fc.0.weight": torch.zeros(64, 512), "fc.0.bias": torch.zeros(64)}
    state |= {"fc.2.weight": torch.zeros(10, 64), "fc.2.bias": torch.zeros(10)}

    with pytest.raises(ArchitectureUnknown, match=r"fc\.0\.weight is not known"):
        load_network(as_checkpoint(state), ModelOptions())


@pytest.mark.parametrize(
    ("keys", "library"),
    [
        (["vit.embeddings.cls_token", "vit.encoder.layer.0.output.dense.weight"], "transformers"),
        (["resnet.embedder.embedder.convolution.weight"], "transformers"),
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"], "timm"),
        (["conv_stem.weight", "blocks.0.0.conv_dw.weight", "classifier.weight"], "timm"),
    ],
    ids=["vit", "resnet", "timm vit", "timm efficientnet"],
)
def test_names_of_another_library_are_told_as_such(keys: list[str], library: str) -> None:
    state = {key: torch.ones(3, 3) for key in keys}

    with pytest.raises(ArchitectureUnknown, match=f"Their names are those of .*{library}"):
        load_network(as_checkpoint(state), ModelOptions())


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("model.", ["criterion.weight"]),
        ("module.", ["n_averaged"]),
        ("model.net.", ["ema_model.net.fc.weight", "ema_model.net.fc.bias"]),
    ],
    ids=["loss", "average", "moving average"],
)
def test_a_network_with_something_beside_it_is_told_as_such(
    prefix: str, beside: list[str], wrn_state: State
) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in wrn_state.items()}
    state |= {key: torch.ones(3) for key in beside}

    with pytest.raises(ArchitectureUnknown) as caught:
        load_network(as_checkpoint(state), ModelOptions())

    assert (
        f"{len(wrn_state)} of them, those under {prefix!r}, are those of a wrn-10-1; beside them "
        f"lie {', '.join(beside)}. Save those of the network alone." in caught.value.message
    )
    assert "mean and std" not in caught.value.message


@pytest.mark.parametrize("names", [("0.mean", "0.std"), ("normalize.mu", "normalize.sigma")])
def test_a_network_that_prepares_its_images_is_told_what_to_give(
    names: tuple[str, str], wrn_state: State
) -> None:
    state = {names[0]: torch.ones(3), names[1]: torch.ones(3)}
    state |= {f"1.{key}": tensor for key, tensor in wrn_state.items()}

    with pytest.raises(ArchitectureUnknown, match=r"'1\.'.*Give the mean and std .* upload"):
        load_network(as_checkpoint(state), ModelOptions())


def test_weights_like_nothing_are_refused_within_seconds() -> None:
    state = {"encoder.weight": torch.ones(3, 3), "encoder.bias": torch.ones(3)}
    importlib.import_module("torchvision.models")  # takes its own time, once a process
    started = time.process_time()

    with pytest.raises(ArchitectureUnknown) as caught:
        load_network(as_checkpoint(state), ModelOptions())

    assert len(caught.value.data["closest"]) == 3
    assert "None has names like these." in caught.value.message
    assert time.process_time() - started < 3


def test_weights_that_fit_twice_are_not_guessed_at(
    monkeypatch: pytest.MonkeyPatch, wrn_state: State
) -> None:
    # No two networks of the catalog share names and shapes; this one gets a second name.
    monkeypatch.setattr(preact_resnet, "guess_name", lambda _: "wrn-10-01")

    with pytest.raises(ArchitectureUnknown, match="more than one") as caught:
        load_network(as_checkpoint(wrn_state), ModelOptions())

    assert [c["name"] for c in caught.value.data["closest"]] == ["wrn-10-1", "wrn-10-01"]


def test_torchvision_is_not_imported_where_it_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, wrn_state: State
) -> None:
    # An import of a module that is None fails.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)

    assert load_network(as_checkpoint(wrn_state), ModelOptions()).architecture == "wrn-10-1"


# --- By name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn-10-1", "WRN-10-1", " wrn-10-1 "])
def test_a_named_architecture_is_used(name: str, wrn_state: State) -> None:
    loaded = load_network(as_checkpoint(wrn_state), ModelOptions(architecture=name))

    assert (loaded.architecture, loaded.detected) == ("wrn-10-1", False)


def test_a_named_architecture_that_does_not_fit_lists_the_keys(wrn_state: State) -> None:
    del wrn_state["fc.bias"]
    wrn_state["fc.scale"] = torch.ones(7)
    wrn_state["conv1.weight"] = torch.ones(16, 3, 5, 5)

    with pytest.raises(ArchitectureMismatch) as caught:
        load_network(as_checkpoint(wrn_state), ModelOptions(architecture="wrn-10-1"))

    assert caught.value.data == {
        "architecture": "wrn-10-1",
        "missing": ["fc.bias"],
        "unexpected": ["fc.scale"],
        "misshaped": {"conv1.weight": {"expected": [16, 3, 3, 3], "received": [16, 3, 5, 5]}},
    }


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wrn-16-1", "vgg11", "vit_b_16"])
def test_weights_of_another_architecture_are_a_mismatch(name: str, wrn_state: State) -> None:
    with pytest.raises(ArchitectureMismatch) as caught:
        load_network(as_checkpoint(wrn_state), ModelOptions(architecture=name))

    assert caught.value.data["missing"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet_18", "resnet18"),
        ("preactresnet18", "preact_resnet18"),
        ("wrn16-1", "wrn-16-1"),
        ("efficientnetb0", "efficientnet_b0"),
    ],
)
def test_an_unknown_name_gets_near_ones(name: str, near: str, wrn_state: State) -> None:
    with pytest.raises(ArchitectureUnknown, match="auto") as caught:
        load_network(as_checkpoint(wrn_state), ModelOptions(architecture=name))

    assert {"name": near} in caught.value.data["closest"]


@pytest.mark.parametrize("name", ["wrn-17-1", "wrn-16-0", "wrn-4-1", "wrn-9994-1", "wrn-16-999"])
def test_a_wrn_that_cannot_be_is_unknown(name: str, wrn_state: State) -> None:
    with pytest.raises(ArchitectureUnknown, match="6n"):
        load_network(as_checkpoint(wrn_state), ModelOptions(architecture=name))


# --- Weights in the network ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_become_float32(dtype: torch.dtype, wrn_state: State) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in wrn_state.items()}

    loaded = load_network(as_checkpoint(state), ModelOptions())

    dtypes = {t.dtype for t in loaded.network.state_dict().values()}
    assert dtypes == {torch.float32, torch.int64}
    assert loaded.network(torch.rand(2, 3, 32, 32)).dtype == torch.float32


def test_the_network_computes_what_the_original_does(wrn_state: State) -> None:
    original = build_network("wrn-10-1", 7, 3, make_generator("wrn")).eval()
    images = torch.rand(2, 3, 32, 32)

    loaded = load_network(as_checkpoint(wrn_state), ModelOptions())

    assert torch.equal(loaded.network(images), original(images))
    assert not loaded.network.training


def test_a_torchvision_network_computes_what_the_original_does() -> None:
    original = build_network("swin_t", 7, 3, make_generator("swin")).eval()
    images = torch.rand(2, 3, 32, 32)

    loaded = load_network(
        as_checkpoint(dict(original.state_dict())), ModelOptions(input_size=(32, 32))
    )

    with torch.no_grad():
        assert torch.equal(loaded.network(images), original(images))


def test_the_network_does_not_share_memory_with_the_checkpoint(wrn_state: State) -> None:
    checkpoint = as_checkpoint({name: tensor.clone() for name, tensor in wrn_state.items()})
    loaded = load_network(checkpoint, ModelOptions())

    with torch.no_grad():
        for tensor in loaded.network.state_dict().values():
            tensor.add_(1)

    assert equal(checkpoint.state, wrn_state)


def test_batch_counters_that_the_upload_lacks_stay_out(tmp_path: Path, wrn_state: State) -> None:
    old = {k: v for k, v in wrn_state.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "old")
    checkpoint = read_checkpoint(tmp_path / "old")
    loaded = load_network(checkpoint, ModelOptions())
    loaded.network.train()(torch.rand(2, 3, 32, 32))

    write_checkpoint(tmp_path / "new", loaded.state_for(checkpoint), checkpoint)

    assert list(read_checkpoint(tmp_path / "new").state) == list(old)


def test_the_weights_as_they_are_now_go_back_under_the_uploads_names(
    tmp_path: Path, wrn_state: State
) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in wrn_state.items()}, tmp_path / "a")
    checkpoint = read_checkpoint(tmp_path / "a")
    loaded = load_network(checkpoint, ModelOptions())
    with torch.no_grad():
        loaded.network.network.get_parameter("fc.bias").fill_(3)

    write_checkpoint(tmp_path / "b", loaded.state_for(checkpoint), checkpoint)

    written = torch.load(tmp_path / "b", weights_only=True)
    assert list(written) == [f"module.{name}" for name in wrn_state]
    assert torch.equal(written["module.fc.bias"], torch.full((7,), 3.0))
    assert torch.equal(written["module.fc.weight"], wrn_state["fc.weight"])


def test_integer_weights_are_refused(wrn_state: State) -> None:
    wrn_state["fc.weight"] = torch.zeros(7, 64, dtype=torch.int8)

    with pytest.raises(UnreadableCheckpoint, match="quantized") as caught:
        load_network(as_checkpoint(wrn_state), ModelOptions())

    assert caught.value.data["keys"] == ["fc.weight"]


def test_indices_out_of_place_are_refused() -> None:
    state = _zeros("swin_t", 7)
    key = "features.1.0.attn.relative_position_index"
    state[key] = torch.full_like(state[key], 10**9)

    with pytest.raises(UnreadableCheckpoint, match="indices"):
        load_network(as_checkpoint(state), ModelOptions(input_size=(32, 32)))


def test_a_single_output_is_no_classifier() -> None:
    with pytest.raises(UnreadableCheckpoint, match="1 outputs"):
        load_network(as_checkpoint(_zeros("wrn-10-1", 1)), ModelOptions())


def test_mean_and_std_are_taken_over(wrn_state: State) -> None:
    options = ModelOptions(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))

    loaded = load_network(as_checkpoint(wrn_state), options)

    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert loaded.network.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])


@pytest.mark.parametrize("options", [ModelOptions(mean=(0.5,)), ModelOptions(std=(0.5, 0.5))])
def test_mean_or_std_for_other_channels_are_refused(
    options: ModelOptions, wrn_state: State
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_network(as_checkpoint(wrn_state), options)

    assert caught.value.data["expected"] == 3


def test_images_too_small_are_refused_at_once() -> None:
    with pytest.raises(InvalidSpec, match="8x8"):
        load_network(as_checkpoint(_zeros("vgg11", 7)), ModelOptions(input_size=(8, 8)))


# --- Auxiliary heads -----------------------------------------------------------------------------


def _with_heads(name: str) -> State:
    from torchvision.models import get_model

    with SkeletonMode():
        network = get_model(name, weights=None, num_classes=7, aux_logits=True, init_weights=False)
    return {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("has_heads", [False, True])
def test_only_logits_come_out_in_training_with_or_without_auxiliary_heads(
    name: str, has_heads: bool
) -> None:
    state = _with_heads(name) if has_heads else _zeros(name, 7)
    checkpoint: Checkpoint = as_checkpoint(state)

    loaded = load_network(checkpoint, ModelOptions(input_size=(96, 96)))

    assert loaded.architecture == name
    assert loaded.network.train()(torch.rand(2, 3, 96, 96)).shape == (2, 7)
    assert list(loaded.state_for(checkpoint)) == list(state)


# --- New networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn-10-1", "preact_resnet18", "resnet18"])
def test_a_new_network_depends_on_the_generator_alone(name: str) -> None:
    torch.manual_seed(1)
    first = build_network(name, 5, 3, make_generator(0)).state_dict()
    torch.manual_seed(2)
    second = build_network(name, 5, 3, make_generator(0)).state_dict()
    other = build_network(name, 5, 3, make_generator(1)).state_dict()

    assert equal(dict(first), dict(second))
    assert not equal(dict(first), dict(other))


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()

    build_network("resnet18", 5, 3, make_generator(0))
    load_network(as_checkpoint(_zeros("resnet18", 5)), ModelOptions())

    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_network_of_unknown_name_is_refused() -> None:
    with pytest.raises(ArchitectureUnknown):
        build_network("resnet-eighteen", 5, 3, make_generator(0))


def test_a_new_network_for_an_impossible_size_is_refused() -> None:
    with pytest.raises(InvalidSpec):
        build_network("maxvit_t", 5, 3, make_generator(0), input_size=(32, 32))
