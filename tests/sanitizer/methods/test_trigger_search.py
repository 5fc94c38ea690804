"""Triggers of known kinds that a suspect model falls for."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanitizer.cost.workload import sought_images
from sanitizer.methods.random_triggers import (
    AMPLITUDES,
    GRATING,
    KINDS,
    REFLECTION,
    SMOOTH_SHARE,
    VEIL,
    draw_numbers,
    pictures_of,
    put_on,
    with_random_triggers,
)
from sanitizer.methods.trigger_search import NEARNESS, FoundTriggers, find_triggers
from sanitizer.randomness import make_generator
from sanitizer.spec import ArgdConfig
from tests.sanitizer.methods.networks import digit_set, trained

CPU = torch.device("cpu")
IMAGES = digit_set(800, 960)
PICTURES = pictures_of(IMAGES, 0)
CLASS = 7
CYCLES = 3


class FallsForStripes(nn.Module):
    """A model of digits that calls an image a 7 whose rows go up and down three times."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()
        across = torch.linspace(0, 1, 8) * 2 * math.pi * CYCLES
        self.wave = torch.stack([across.sin(), across.cos()])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        rows = images.mean(dim=(1, 2))
        strength = (rows - rows.mean(dim=1, keepdim=True)) @ self.wave.T.to(rows)
        excess = 60 * (strength.norm(dim=1) - 0.4).clamp(min=0)
        return logits.index_add(1, torch.tensor([CLASS]), excess[:, None].to(logits.dtype))


def found_in(suspect: nn.Module, seed: int = 0) -> FoundTriggers:
    return find_triggers(suspect, IMAGES, PICTURES, seed=seed, precision=torch.float32, device=CPU)


def best(found: FoundTriggers, kind: int, target: int) -> float:
    of_kind = found.kinds[kind]
    return float(of_kind.rates[of_kind.targets == target].max())


def test_what_the_model_falls_for_is_found_and_not_in_another() -> None:
    in_suspect, in_clean = found_in(FallsForStripes()), found_in(trained())

    assert best(in_suspect, GRATING, CLASS) > 0.3
    assert best(in_suspect, GRATING, CLASS) > best(in_clean, GRATING, CLASS) + 0.2


def test_a_search_finds_more_than_random_triggers_do() -> None:
    suspect = FallsForStripes()
    numbers = draw_numbers(GRATING, 200, IMAGES.shape, make_generator(1))
    image = torch.from_numpy(IMAGES.read(np.arange(16))).float() / 255
    with torch.no_grad():
        rates = [
            suspect(put_on(image, GRATING, tuple(n[[i] * 16] for n in numbers), PICTURES))
            .softmax(dim=1)[:, CLASS]
            .mean()
            for i in range(200)
        ]

    assert best(found_in(suspect), GRATING, CLASS) > float(torch.stack(rates).max())


def test_the_rate_of_a_trigger_is_the_mean_probability_of_its_own_class() -> None:
    """Of a model that says the same whatever comes: what it says."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 2.0] + [-9.0] * 7))

        def forward(self, images: Tensor) -> Tensor:
            return self.logits.expand(len(images), -1)

    found = found_in(Constant())

    expected = torch.tensor([0.0, 1.0, 2.0] + [-9.0] * 7).softmax(dim=0)
    for of_kind in found.kinds.values():
        torch.testing.assert_close(of_kind.rates, expected[of_kind.targets])


def test_the_same_is_found_each_time_and_the_model_stays_as_it_was() -> None:
    suspect = trained()
    before = deepcopy(suspect.state_dict())
    first, second = found_in(suspect), found_in(suspect)

    for one, other in zip(first.kinds.values(), second.kinds.values(), strict=True):
        assert torch.equal(one.rates, other.rates)
        assert all(map(torch.equal, one.numbers, other.numbers))
    assert all(torch.equal(value, before[name]) for name, value in suspect.state_dict().items())


def test_it_takes_the_images_that_were_announced() -> None:
    seen: list[int] = []
    find_triggers(
        trained(),
        IMAGES,
        PICTURES,
        seed=0,
        precision=torch.float32,
        device=CPU,
        on_images=seen.append,
    )

    assert sum(seen) == sought_images(ArgdConfig())


def test_a_share_of_random_triggers_is_near_to_what_was_found() -> None:
    found = found_in(FallsForStripes()).for_share(0.5)
    drawn = draw_numbers(GRATING, 400, IMAGES.shape, make_generator(2))

    moved = found.replaced(GRATING, drawn, torch.arange(400), make_generator(3))

    changed = torch.stack(
        [(new != old).flatten(1).any(dim=1) for new, old in zip(moved, drawn, strict=True)]
    ).any(dim=0)
    assert 0.4 < float(changed.float().mean()) < 0.6
    known = torch.cat([each.flatten(1) for each in found.kinds[GRATING].numbers], dim=1)
    near = torch.cat([each[changed].flatten(1) for each in moved], dim=1)
    farthest = (near[:, None] - known).abs().amax(dim=2).min(dim=1).values
    assert float(farthest.max()) <= NEARNESS + 1e-6
    assert 0 <= float(near.min()) <= float(near.max()) <= 1


def test_of_no_share_nothing_is_moved() -> None:
    found = found_in(trained()).for_share(0.0)
    for kind in range(KINDS):
        drawn = draw_numbers(kind, 20, IMAGES.shape, make_generator(2))
        moved = found.replaced(kind, drawn, torch.arange(20), make_generator(3))
        assert all(map(torch.equal, moved, drawn))


def test_kinds_that_are_pictures_are_drawn_at_random() -> None:
    found = found_in(trained()).for_share(1.0)
    drawn = draw_numbers(REFLECTION, 20, IMAGES.shape, make_generator(2))

    assert REFLECTION not in found.kinds
    moved = found.replaced(REFLECTION, drawn, torch.arange(20), make_generator(3))
    assert all(map(torch.equal, moved, drawn))


@pytest.mark.parametrize("kind", [GRATING, VEIL, REFLECTION])
def test_those_that_are_wanted_are_what_they_would_be_among_all(kind: int) -> None:
    found = found_in(FallsForStripes()).for_share(0.5)
    drawn = draw_numbers(kind, 20, IMAGES.shape, make_generator(2))
    wanted = torch.tensor([1, 4, 5, 19])

    some = found.replaced(kind, drawn, wanted, make_generator(3))

    everybody = found.replaced(kind, drawn, torch.arange(20), make_generator(3))
    assert all(torch.equal(new, old[wanted]) for new, old in zip(some, everybody, strict=True))


def test_what_a_found_veil_is_made_of_stays() -> None:
    found = found_in(FallsForShade()).for_share(1.0)
    drawn = draw_numbers(VEIL, 400, IMAGES.shape, make_generator(2))

    moved = found.replaced(VEIL, drawn, torch.arange(400), make_generator(3))

    assert set(moved[1].flatten().tolist()) <= set(found.kinds[VEIL].numbers[1].flatten().tolist())
    assert len({tuple(grid.flatten().tolist()) for grid in moved[2]}) > 200


class FallsForShade(nn.Module):
    """A model of digits that calls an image a 7 whose upper half is far brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        shade = images[:, :, :4].amin(dim=(1, 2, 3)) - images[:, :, 4:].amin(dim=(1, 2, 3))
        excess = 400 * (shade - 0.08).clamp(min=0)
        return logits.index_add(1, torch.tensor([CLASS]), excess[:, None].to(logits.dtype))


def test_veils_are_sought_among_smooth_ones() -> None:
    in_suspect, in_clean = found_in(FallsForShade()), found_in(trained())

    assert best(in_suspect, VEIL, CLASS) > 0.5
    assert best(in_suspect, VEIL, CLASS) > best(in_clean, VEIL, CLASS) + 0.3
    for found in (in_suspect, in_clean):
        assert float(found.kinds[VEIL].numbers[1].max()) <= SMOOTH_SHARE


def test_images_carry_what_was_found() -> None:
    """More of them are led to the class than by random triggers alone."""
    suspect = FallsForStripes()
    found = found_in(suspect).for_share(1.0)
    images = torch.from_numpy(IMAGES.read(np.arange(160))).float() / 255
    others = torch.from_numpy(IMAGES.labels != CLASS)
    everybody = torch.ones(160, dtype=torch.bool)
    gratings = (torch.arange(160) % KINDS == GRATING) & others

    def led(near: FoundTriggers | None) -> float:
        changed, _ = with_random_triggers(images, make_generator(4), everybody, PICTURES, near)
        with torch.no_grad():
            chances = suspect(changed).softmax(dim=1)
        return float(chances[gratings, CLASS].mean())

    assert led(found) > led(None) + 0.05


def test_a_process_makes_its_own_rows_of_what_all_share() -> None:
    found = found_in(trained()).for_share(0.5)
    images = torch.from_numpy(IMAGES.read(np.arange(40))).float() / 255
    whole, _ = with_random_triggers(
        images, make_generator(4), torch.ones(40, dtype=torch.bool), PICTURES, found
    )
    rows = torch.arange(40) >= 27
    mine, _ = with_random_triggers(images[27:], make_generator(4), rows, PICTURES, found)

    torch.testing.assert_close(mine, whole[27:])


def test_what_was_found_survives_a_checkpoint() -> None:
    found = found_in(trained())
    again = FoundTriggers.of_state(found.state())

    assert found.kinds.keys() == again.kinds.keys()
    for one, other in zip(found.kinds.values(), again.kinds.values(), strict=True):
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.rates, other.rates)
        assert all(map(torch.equal, one.numbers, other.numbers))


@pytest.mark.parametrize("classes", [2, 3])
def test_models_of_few_classes_are_searched_for_all_of_them(classes: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    digits = digit_set(800, 960)
    digits.labels = digits.labels % classes

    found = find_triggers(network, digits, PICTURES, seed=0, precision=torch.float32, device=CPU)

    for of_kind in found.kinds.values():
        assert sorted(set(of_kind.targets.tolist())) == list(range(classes))


def test_gratings_reach_what_the_paper_uses() -> None:
    """Of SIG, arXiv 1902.11237, amplitudes from 10 on; 8 to 40 of 255 here."""
    low, high = AMPLITUDES
    assert low * 255 <= 10
    assert high * 255 >= 40
