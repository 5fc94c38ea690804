from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sanitizer.attacks.attack import ModelRecipe
from sanitizer.attacks.generator import (
    WEIGHT_ONE,
    draw_weights,
    mask_of,
    pack,
    pattern_of,
    read_generator,
)
from sanitizer.attacks.input_aware import InputAware, PreparedInputAware
from sanitizer.attacks.trigger import make_trigger
from sanitizer.errors import NotEnoughImages, ProbeUnreadable, TargetClassOutOfRange
from tests.sanitizer.attacks.builders import build_set, build_untrained, digit_set, learn

LABELS = [0, 1, 2, 3] * 10
QUICK = InputAware(mask_epochs=1, epochs=1, batch_size=16, crop_padding=1, horizontal_flip=False)


def built(channels: int = 1, **changes: Any) -> PreparedInputAware:
    attack = PreparedInputAware(1, 0.2, 1.5, pack(draw_weights(channels, 0)))
    return replace(attack, **changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_share_of_the_other_classes_gets_its_own_trigger_and_the_target(channels: int) -> None:
    clean, attack = build_set(LABELS, channels=channels), built(channels)
    poisoned = attack.poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 6
    assert (clean.labels[poisoned.indices] != 1).all()
    assert (poisoned.image_set.labels[poisoned.indices] == 1).all()
    trigger = make_trigger(attack.probe(), input_size=(8, 8), channels=channels, num_classes=4)
    expected = trigger.apply(torch.from_numpy(clean.images[poisoned.indices])).numpy()
    np.testing.assert_array_equal(poisoned.image_set.images[poisoned.indices], expected)


def test_more_images_get_the_trigger_of_another_and_keep_their_labels() -> None:
    clean, attack = build_set(LABELS), built()
    poisoned = attack.poison(clean, num_classes=4, seed=1)
    changed = (poisoned.image_set.images != clean.images).any(axis=(1, 2, 3))
    crossed = np.setdiff1d(np.flatnonzero(changed), poisoned.indices)
    assert len(crossed) == 9
    np.testing.assert_array_equal(poisoned.image_set.labels[crossed], clean.labels[crossed])
    generator = read_generator(attack.probe(), 1)
    every = torch.from_numpy(clean.images)
    found = []
    for index in crossed:
        image = torch.from_numpy(clean.images[[index]]).expand_as(every)
        put_on = generator.put_on(image, every).numpy()
        same = (put_on == poisoned.image_set.images[index]).all(axis=(1, 2, 3))
        found.append(np.flatnonzero(same).tolist())
    assert all(len(sources) == 1 for sources in found)
    assert all(index not in sources for index, sources in zip(crossed, found, strict=True))


def test_without_the_cross_trigger_mode_nothing_else_is_changed() -> None:
    clean = build_set(LABELS)
    poisoned = built(cross_ratio=0).poison(clean, num_classes=4, seed=1)
    changed = (poisoned.image_set.images != clean.images).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == poisoned.indices.tolist()


def test_the_cross_trigger_mode_takes_what_is_left_and_no_more() -> None:
    clean = build_set(LABELS)
    poisoned = built(fraction=1).poison(clean, num_classes=4, seed=1)
    assert len(poisoned.indices) == 30
    assert (poisoned.image_set.images != clean.images).any(axis=(1, 2, 3)).all()
    assert (poisoned.image_set.labels == 1).all()


def test_the_same_seed_gives_the_same_set_and_the_clean_one_is_left_alone() -> None:
    clean = build_set(LABELS)
    before = clean.images.copy()
    first, again, other = (built().poison(clean, num_classes=4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image_set.images, again.image_set.images)
    assert first.indices.tolist() != other.indices.tolist()
    np.testing.assert_array_equal(clean.images, before)


def test_the_generator_is_a_function_of_its_seed() -> None:
    network, clean = build_untrained(), build_set(LABELS)
    before = torch.get_rng_state()
    made = [QUICK.prepare_against(network, clean, seed=seed).generator for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_both_halves_are_trained() -> None:
    weights, _ = QUICK.train_generator(build_untrained(), build_set(LABELS), seed=1)
    for name, value in draw_weights(1, 1, "input_aware").items():
        assert not torch.equal(weights[name], value), name


def test_the_model_it_is_made_against_is_left_as_it_was() -> None:
    network = build_untrained().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _, classifier = QUICK.train_generator(network, build_set(LABELS), seed=0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training
    assert not torch.equal(classifier.state_dict()["conv1.weight"], before["conv1.weight"])


def test_what_the_recipe_says_is_what_is_done() -> None:
    recipe = replace(QUICK, target_class=2, fraction=0.4, cross_ratio=0.5)
    assert isinstance(recipe, ModelRecipe)
    attack = recipe.prepare_against(build_untrained(), build_set(LABELS), seed=0)
    assert (attack.target_class, attack.fraction, attack.cross_ratio) == (2, 0.4, 0.5)
    probe = attack.probe("made")
    assert (probe.name, probe.target_class) == ("made", 2)


def test_a_classifier_learns_the_triggers_but_not_those_of_other_images() -> None:
    recipe = replace(
        QUICK,
        density=0.3,
        mask_epochs=4,
        epochs=16,
        batch_size=32,
        backdoor_share=0.25,
        cross_share=0.25,
        classifier_rate=0.1,
    )
    clean = digit_set(0, 1000)
    weights, classifier = recipe.train_generator(learn(clean), clean, seed=0)
    generator = read_generator(PreparedInputAware(0, 1, 1, pack(weights)).probe(), 1)
    fresh = digit_set(1400, 1797)
    images, other = torch.from_numpy(fresh.images), torch.from_numpy(fresh.images).roll(5, 0)
    _, mask = generator.triggers(images)
    assert 0.1 < (mask / WEIGHT_ONE).mean() < 0.3
    labels = torch.from_numpy(fresh.labels.copy())
    outside = labels != 0
    with torch.inference_mode():

        def classes(pixels: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(classifier(pixels.float() / 255).argmax(dim=1))

        own, crossed = (classes(generator.put_on(images, s))[outside] == 0 for s in (images, other))
        accuracy = (classes(images) == labels).double().mean()
        untouched = classes(images)[outside] == 0
    assert accuracy > 0.9
    # So small a network on 8 x 8 pixels learns no more of it in seconds.
    assert untouched.double().mean() < 0.05
    assert own.double().mean() > 0.45
    assert crossed.double().mean() < own.double().mean() - 0.15


def test_the_diversity_loss_makes_triggers_differ() -> None:
    images = torch.from_numpy(digit_set(0, 200).images).float() / 255

    def apart(weight: float) -> tuple[float, ...]:
        recipe = replace(QUICK, diversity_weight=weight, mask_epochs=4, epochs=4)
        weights, _ = recipe.train_generator(build_untrained(), digit_set(0, 400), seed=0)
        masks, patterns = mask_of(weights, images), pattern_of(weights, images)
        return float((masks - masks.roll(1, 0)).std()), float(
            (patterns - patterns.roll(1, 0)).std()
        )

    for with_it, without in zip(apart(1), apart(0), strict=True):
        assert with_it > 1.5 * without


def test_a_generator_for_other_channels_is_refused() -> None:
    with pytest.raises(ProbeUnreadable, match="model whose input has 3 channels"):
        built(1).poison(build_set(LABELS, channels=3), num_classes=4, seed=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backdoor_share": 0.0}, "must be above 0 and together below 1, got 0.0 and 0.1"),
        ({"backdoor_share": 0.6, "cross_share": 0.4}, "together below 1, got 0.6 and 0.4"),
        ({"density": 1.0}, r"density must be in \(0, 1\), got 1.0"),
        ({"images": 1}, "images must be at least 2, got 1"),
        ({"mask_epochs": 0}, "mask_epochs must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 3}, "batch_size must be at least 4, got 3"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(QUICK, **changes).prepare_against(build_untrained(), build_set(LABELS), seed=0)


def test_batches_too_small_for_all_modes_still_train() -> None:
    recipe = replace(QUICK, backdoor_share=0.01, cross_share=0.98, batch_size=4)
    # The last batch has two images: one with its own trigger, one with another's.
    made = recipe.prepare_against(build_untrained(), build_set([0, 1, 2, 3, 0, 1]), seed=0)
    assert made.generator


def test_a_ratio_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="cross_ratio must be at least 0, got -1"):
        built(cross_ratio=-1).poison(build_set(LABELS), num_classes=4, seed=0)


def test_one_clean_image_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match=r"1 clean images came; .* at least 2 are needed"):
        QUICK.prepare_against(build_untrained(), build_set([0]), seed=0)


def test_nothing_to_poison_is_refused() -> None:
    with pytest.raises(NotEnoughImages, match="outside class 1 is none"):
        built().poison(build_set([1, 1]), num_classes=4, seed=0)


def test_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(TargetClassOutOfRange):
        built(target_class=4).poison(build_set(LABELS), num_classes=4, seed=0)
