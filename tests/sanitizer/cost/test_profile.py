from collections.abc import Sequence

import pytest
import torchvision

from sanitizer.catalog import ARCHITECTURES, ArchitectureEntry
from sanitizer.cost.profile import CLASSES, NetworkProfile, find_profile, nearest_by_size
from scripts.measure_networks import measure, run, skeleton

CATALOG = [entry for entry in ARCHITECTURES if entry.family != "wrn"]
QUICK = ["preact_resnet18", "resnet18", "squeezenet1_1", "vit_b_32"]


def profile_of(name: str) -> NetworkProfile:
    found = find_profile(name)
    assert found is not None
    return found


def test_multiply_accumulates_of_a_wrn_are_those_counted_by_hand() -> None:
    stem = 3 * 16 * 9 * 1024
    first = 4 * (16 * 16 * 9) * 1024
    second = (16 * 32 * 9 + 3 * 32 * 32 * 9 + 16 * 32) * 256
    third = (32 * 64 * 9 + 3 * 64 * 64 * 9 + 32 * 64) * 64
    head = 64 * CLASSES
    assert profile_of("wrn-16-1").macs.at(32 * 32) == stem + first + second + third + head


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-1", "wrn-16-2", "wrn-28-4"])
def test_formula_of_the_wrns_gives_what_is_measured(name: str) -> None:
    assert profile_of(name) == measure(name, 32)


@pytest.mark.parametrize("name", QUICK)
def test_table_says_what_is_measured(name: str) -> None:
    side = next(entry.input_size[0] for entry in CATALOG if entry.name == name)
    assert profile_of(name) == measure(name, side)


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_whole_table_says_what_is_measured(entry: ArchitectureEntry) -> None:
    assert profile_of(entry.name) == measure(entry.name, entry.input_size[0])


def test_every_architecture_of_the_catalog_has_a_profile() -> None:
    assert [entry.name for entry in CATALOG if find_profile(entry.name) is None] == []


@pytest.mark.parametrize(
    "name", ["resnet50", "vgg16", "mobilenet_v2", "densenet121", "vit_b_16", "swin_t"]
)
def test_torchvision_publishes_the_same_multiply_accumulates(name: str) -> None:
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta["_ops"]
    assert profile_of(name).macs.at(224 * 224) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(("name", "side"), [("resnet50", 96), ("vgg11", 64), ("swin_t", 448)])
def test_other_sizes_than_those_measured_are_met_within_a_tenth(name: str, side: int) -> None:
    profile, measured = profile_of(name), run(skeleton(name, side), side)
    assert profile.macs.at(side * side) == pytest.approx(measured.macs, rel=0.1)
    assert profile.saved_bytes.at(side * side) == pytest.approx(measured.saved_bytes, rel=0.1)


@pytest.mark.parametrize("name", ["wrn-16-1", " WRN-16-1 ", "ResNet50"])
def test_names_are_read_as_the_run_reads_them(name: str) -> None:
    assert find_profile(name) is not None


@pytest.mark.parametrize("name", ["wrn-17-1", "wrn-4-1", "wrn-16-0", "resnet51", "auto", ""])
def test_what_is_no_network_has_no_profile(name: str) -> None:
    assert find_profile(name) is None


@pytest.mark.parametrize("name", ["wrn-16-1", "resnet50", "vit_l_16", "squeezenet1_1"])
@pytest.mark.parametrize("classes", [10, 1000])
def test_network_is_guessed_from_the_size_of_its_file(name: str, classes: int) -> None:
    size = profile_of(name).file_bytes(classes)
    guessed, off = nearest_by_size(size)
    assert off == pytest.approx(1, abs=0.01)
    assert size in _sizes(profile_of(guessed), (10, 100, 1000))


def _sizes(profile: NetworkProfile, classes: Sequence[int]) -> list[int]:
    return [profile.file_bytes(number) for number in classes]


@pytest.mark.parametrize("size", [0, 7, 2**45])
def test_file_that_no_network_has_is_told_by_how_far_it_is_off(size: int) -> None:
    assert nearest_by_size(size)[1] > 10
