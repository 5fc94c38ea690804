"""Where features are taken, and that taking them leaves no trace."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import (
    create_feature_extractor,
)

from sanitizer.errors import InvalidSpec
from sanitizer.networks.normalized import NormalizedNetwork
from sanitizer.networks.registry import build_network
from sanitizer.networks.skeleton import SkeletonMode
from sanitizer.networks.taps import TapPoint, find_taps, tapped
from sanitizer.networks.torchvision_networks import ENTRIES
from sanitizer.randomness import make_generator


def _network(name: str) -> nn.Module:
    return build_network(name, 5, 3, make_generator(name)).eval()


def _images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=make_generator("images"))


def _hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def _brief(points: tuple[TapPoint, ...]) -> list[tuple[str, str, tuple[int, int], int]]:
    return [(point.module, point.layout, point.grid, point.channels) for point in points]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (
            "wrn-10-2",
            (32, 32),
            [
                ("block1", "nchw", (32, 32), 32),
                ("block2", "nchw", (16, 16), 64),
                ("block3", "nchw", (8, 8), 128),
            ],
        ),
        (
            "preact_resnet18",
            (32, 32),
            [
                ("layer1", "nchw", (32, 32), 64),
                ("layer2", "nchw", (16, 16), 128),
                ("layer3", "nchw", (8, 8), 256),
                ("layer4", "nchw", (4, 4), 512),
            ],
        ),
        (
            "resnet18",
            (64, 96),
            [
                ("layer1", "nchw", (16, 24), 64),
                ("layer2", "nchw", (8, 12), 128),
                ("layer3", "nchw", (4, 6), 256),
                ("layer4", "nchw", (2, 3), 512),
            ],
        ),
        (
            "regnet_x_400mf",
            (64, 64),
            [
                ("trunk_output.block1", "nchw", (16, 16), 32),
                ("trunk_output.block2", "nchw", (8, 8), 64),
                ("trunk_output.block3", "nchw", (4, 4), 160),
                ("trunk_output.block4", "nchw", (2, 2), 400),
            ],
        ),
        (
            "vgg11",
            (64, 64),
            [
                ("features.1", "nchw", (64, 64), 64),
                ("features.4", "nchw", (32, 32), 128),
                ("features.9", "nchw", (16, 16), 256),
                ("features.14", "nchw", (8, 8), 512),
                ("features.19", "nchw", (4, 4), 512),
                ("features", "nchw", (2, 2), 512),
            ],
        ),
        (
            "swin_t",
            (64, 64),
            [
                ("features.1", "nhwc", (16, 16), 96),
                ("features.3", "nhwc", (8, 8), 192),
                ("features.5", "nhwc", (4, 4), 384),
                ("permute", "nchw", (2, 2), 768),
            ],
        ),
        ("vit_b_32", (224, 224), [("encoder", "tokens", (7, 7), 768)]),
    ],
)
def test_the_taps_of_an_architecture(
    name: str, size: tuple[int, int], expected: list[tuple[str, str, tuple[int, int], int]]
) -> None:
    with SkeletonMode():
        network = build_network(name, 5, 3, make_generator(name))

    assert _brief(find_taps(network, name, size, 3)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "maxvit_t",
        "mnasnet0_5",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "swin_v2_t",
    ],
)
def test_every_family_has_taps_with_the_shapes_they_claim(name: str) -> None:
    with SkeletonMode():
        network = build_network(name, 5, 3, make_generator(name))
    size = (224, 224)
    points = find_taps(network, name, size, 3)
    grids = [point.grid for point in points]

    assert name in ENTRIES
    assert len(points) >= 3
    assert len(set(grids)) == len(grids)
    assert all(point.channels > 1 for point in points)
    assert all(height == width and 1 < height <= 224 for height, width in grids)


def test_finding_taps_changes_nothing_of_the_network() -> None:
    network = _network("wrn-10-1").train()
    network.get_submodule("block1").eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    find_taps(network, "wrn-10-1", (32, 32), 3)

    assert [module.training for module in network.modules()] == modes
    assert _hooks(network) == 0
    assert all(torch.equal(tensor, before[k]) for k, tensor in network.state_dict().items())


def test_a_map_of_one_pixel_is_no_tap() -> None:
    points = find_taps(_network("resnet18"), "resnet18", (32, 32), 3)

    assert [point.module for point in points] == ["layer1", "layer2", "layer3"]


def test_images_too_small_for_the_network_are_refused() -> None:
    with SkeletonMode():
        network = build_network("vgg11", 5, 3, make_generator("vgg"))

    with pytest.raises(InvalidSpec, match="16x16"):
        find_taps(network, "vgg11", (16, 16), 3)


def test_features_equal_those_of_torchvisions_extractor_to_the_bit() -> None:
    network = _network("resnet18")
    images = _images(2, 3, 64, 64)
    stages = ["layer1", "layer2", "layer3", "layer4"]
    oracle = create_feature_extractor(network, stages)

    with tapped(network, find_taps(network, "resnet18", (64, 64), 3)) as taps:
        network(images)
        maps = taps.take()

    expected = oracle(images)
    assert all(torch.equal(a, expected[stage]) for a, stage in zip(maps, stages, strict=True))


def test_densenets_in_place_relu_does_not_reach_the_features() -> None:
    network = _network("densenet121")
    images = _images(2, 3, 64, 64)
    points = find_taps(network, "densenet121", (64, 64), 3)

    with torch.no_grad(), tapped(network, points) as taps:
        network(images)
        last = taps.take()[-1]

    assert points[-1].module == "features"
    assert torch.equal(last, network.get_submodule("features")(images).detach())
    assert (last < 0).any()


def test_an_in_place_module_behind_a_tap_does_not_reach_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))

    with tapped(network, [TapPoint("0", "nchw", (4, 4), 4)]) as taps:
        images = _images(2, 3, 4, 4)
        network(images)
        (kept,) = taps.take()

    assert torch.equal(kept, network[0](images))
    assert (kept < 0).any()


@pytest.mark.parametrize(("name", "size"), [("swin_t", 64), ("vit_b_32", 64)])
def test_other_layouts_become_maps_of_channels_height_and_width(name: str, size: int) -> None:
    network = build_network(name, 5, 3, make_generator(name), input_size=(size, size)).eval()
    points = find_taps(network, name, (size, size), 3)

    with torch.no_grad(), tapped(network, points) as taps:
        network(_images(2, 3, size, size))
        maps = taps.take()

    assert [tuple(m.shape) for m in maps] == [(2, p.channels, *p.grid) for p in points]


def test_tokens_keep_their_place_in_the_image() -> None:
    tokens = torch.arange(2.0 * 7 * 3).view(2, 7, 3)

    with tapped(nn.Sequential(nn.Identity()), [TapPoint("0", "tokens", (2, 3), 3)]) as taps:
        taps_network = nn.Sequential(nn.Identity())
        with tapped(taps_network, taps.points) as inner:
            taps_network(tokens)
            (kept,) = inner.take()

    # Row 1, column 2 is the last patch: token 6, behind the class token.
    assert torch.equal(kept[:, :, 1, 2], tokens[:, 6])
    assert torch.equal(kept[:, :, 0, 0], tokens[:, 1])


def test_gradients_flow_through_the_features() -> None:
    network = _network("wrn-10-1")

    with tapped(network, find_taps(network, "wrn-10-1", (16, 16), 3)) as taps:
        network(_images(2, 3, 16, 16))
        sum(m.square().sum() for m in taps.take()).backward()  # type: ignore[union-attr]  # never 0

    assert network.get_submodule("conv1").weight.grad is not None


def test_a_normalising_wrapper_is_looked_through() -> None:
    network = NormalizedNetwork(_network("wrn-10-1"), (0.5,) * 3, (0.5,) * 3)
    points = find_taps(network, "wrn-10-1", (16, 16), 3)

    with tapped(network, points) as taps:
        network(_images(2, 3, 16, 16))
        maps = taps.take()

    assert [point.module for point in points] == ["block1", "block2", "block3"]
    assert [m.shape[1] for m in maps] == [16, 32, 64]


def test_features_are_taken_once() -> None:
    network = _network("wrn-10-1")

    with tapped(network, find_taps(network, "wrn-10-1", (16, 16), 3)) as taps:
        network(_images(2, 3, 16, 16))
        taps.take()
        with pytest.raises(RuntimeError, match="block1, block2, block3"):
            taps.take()


def test_hooks_are_gone_after_the_context() -> None:
    network = _network("wrn-10-1")

    with tapped(network, find_taps(network, "wrn-10-1", (16, 16), 3)):
        attached = _hooks(network)

    assert (attached, _hooks(network)) == (3, 0)


def test_hooks_are_gone_after_an_exception() -> None:
    network = _network("wrn-10-1")
    points = find_taps(network, "wrn-10-1", (16, 16), 3)

    with pytest.raises(RuntimeError), tapped(network, points):
        network(torch.rand(2, 5, 16, 16))

    assert _hooks(network) == 0


def test_hooks_are_gone_when_a_tap_does_not_exist() -> None:
    network = _network("wrn-10-1")
    points = [TapPoint("block1", "nchw", (1, 1), 1), TapPoint("absent", "nchw", (1, 1), 1)]

    with pytest.raises(AttributeError), tapped(network, points):
        pass

    assert _hooks(network) == 0


class Fickle(nn.Module):
    """Writes over the output of its first layer, when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.writes_over = False

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.first(images)
        return features.mul_(2) if self.writes_over else features * 2


FICKLE = TapPoint("first", "nchw", (8, 8), 4)


def test_an_output_that_nothing_writes_over_is_copied_in_the_first_pass_alone() -> None:
    network, images = Fickle(), _images(2, 3, 8, 8)
    seen: list[Tensor] = []
    network.first.register_forward_hook(lambda _, __, output: seen.append(output))
    with tapped(network, [FICKLE]) as taps:
        taken = []
        for _ in range(3):
            network(images)
            taken += taps.take()
    assert [a is b for a, b in zip(seen, taken, strict=True)] == [False, True, True]
    assert torch.equal(taken[0], taken[2])


def test_an_output_that_is_written_over_is_copied_in_every_pass() -> None:
    network, images = Fickle(), _images(2, 3, 8, 8)
    network.writes_over = True
    expected = network.first(images)
    with tapped(network, [FICKLE]) as taps:
        for _ in range(3):
            network(images)
            assert torch.equal(taps.take()[0], expected)


def test_an_output_written_over_in_a_later_pass_alone_is_told() -> None:
    network, images = Fickle(), _images(2, 3, 8, 8)
    with tapped(network, [FICKLE]) as taps:
        network(images)
        taps.take()
        network.writes_over = True
        network(images)
        with pytest.raises(RuntimeError, match="first was written over in this forward pass"):
            taps.take()


def test_features_in_inference_mode_are_copies() -> None:
    network, images = Fickle(), _images(2, 3, 8, 8)
    network.writes_over = True
    expected = network.first(images)
    with torch.inference_mode(), tapped(network, [FICKLE]) as taps:
        for _ in range(2):
            network(images)
            assert torch.equal(taps.take()[0], expected)
