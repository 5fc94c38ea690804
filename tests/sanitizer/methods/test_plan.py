from dataclasses import replace

import pytest
import torch
from torch import nn

from sanitizer.errors import InvalidSpec
from sanitizer.methods.argd.step import ArgdStep
from sanitizer.methods.hardening import HardenedStep
from sanitizer.methods.plan import Bench, TrainingStage, check_applies, plan
from sanitizer.methods.trigger_search import FoundTriggers
from sanitizer.networks.taps import find_taps
from sanitizer.spec import METHOD_ADAPTER, ArgdConfig, Hardening, trainings_of
from tests.sanitizer.methods.networks import (
    SHAPE,
    digit_set,
    fresh,
    small_transformer,
    trained,
)

METHODS = [
    choice["properties"]["name"]["const"]
    for choice in METHOD_ADAPTER.json_schema()["$defs"].values()
    if "name" in choice.get("properties", {})
]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_residual_network(name: str) -> None:
    check_applies(METHOD_ADAPTER.validate_python({"name": name}), fresh(), SHAPE)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "auto"])
def test_every_training_has_the_name_that_the_settings_of_its_method_give_it(name: str) -> None:
    config = METHOD_ADAPTER.validate_python({"name": name})
    settings = dict(trainings_of("method", config))
    stages = [stage for stage in plan(config) if isinstance(stage, TrainingStage)]
    assert [f"method.{stage.setting}" for stage in stages] == list(settings)
    for stage in stages:
        assert stage.training.phases == settings[f"method.{stage.setting}"].phases


def bench() -> Bench:
    student = fresh()
    return Bench(
        student,
        fresh(),
        find_taps(student, "wrn-10-1", (8, 8), 1),
        seed=3,
        clean=digit_set(0, 40),
        found=FoundTriggers({}),
        suspect=fresh(),
    )


def training_stages(method: object) -> list[TrainingStage]:
    config = METHOD_ADAPTER.validate_python(method)
    return [stage for stage in plan(config) if isinstance(stage, TrainingStage)]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("auto", "clp")])
def test_a_stage_trains_the_network_that_it_says_it_trains(name: str) -> None:
    for stage in training_stages({"name": name}):
        given = bench()
        step = stage.make_step(given)
        own, other = given.student, given.teacher
        if stage.trains == "teacher":
            own, other = other, own
        inside = set(step.network.modules())
        assert own in inside
        assert other not in inside


HARDENED = ArgdConfig(
    hardening=Hardening(rho=0.5, random_triggers=True, found_share=0.2, trigger_candidates=1),
    student_hardening=Hardening(
        rho=0.25, perturbation=4, random_triggers=True, found_share=0.75, trigger_candidates=1
    ),
)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_teacher_and_student_are_each_hardened_as_their_own_settings_say(scale: float) -> None:
    """As much more gently as they are trained, where a training backs off."""
    given = replace(bench(), scale=scale)
    teaching, distilling = (stage.make_step(given) for stage in training_stages(HARDENED))
    for step, hardening in (
        (teaching, HARDENED.hardening),
        (distilling, HARDENED.student_hardening),
    ):
        assert isinstance(step, HardenedStep)
        assert step.rho == scale * hardening.rho
        assert step.hardening == hardening.model_copy(update={"rho": step.rho})
        assert isinstance(step._near, FoundTriggers)
        assert step._near.share == hardening.found_share


@pytest.mark.parametrize(
    ("method", "backs_off"),
    [({}, True), ({"back_off": False}, False), ({"classifier_shift": 0.1}, False)],
)
def test_a_training_backs_off_where_that_is_asked_for_and_there_is_something_to_lose(
    method: dict[str, object], backs_off: bool
) -> None:
    """A classifier that is drawn anew has lost everything before it begins."""
    stages = training_stages({"name": "argd", **method})
    assert [stage.backs_off for stage in stages] == [backs_off] * 2


def test_what_is_drawn_for_a_step_depends_on_the_seed_and_the_stage() -> None:
    perturbed = Hardening(perturbation=4, rho=0)
    config = HARDENED.model_copy(update={"hardening": perturbed, "student_hardening": perturbed})
    images = torch.rand(8, *SHAPE)
    drawn = []
    for given in (bench(), bench(), replace(bench(), seed=4)):
        steps = [stage.make_step(given) for stage in training_stages(config)]
        for step in steps:
            assert isinstance(step, HardenedStep)
            with step.attached():
                step(images, torch.arange(8))
        inner = steps[1]
        assert isinstance(inner, HardenedStep)
        assert isinstance(inner.step, ArgdStep)
        parts = [step.network.get_extra_state() for step in steps if isinstance(step, HardenedStep)]
        parts.append(inner.step.embedding.get_buffer("bilinear_weight"))
        (fst,) = training_stages({"name": "fst"})
        parts.append(
            fst.make_step(replace(given, student=trained())).network.get_parameter("fc.weight")
        )
        drawn.append([part.detach().numpy().tobytes() for part in parts])
    first, again, other = drawn
    assert first == again
    assert all(one != another for one, another in zip(first, other, strict=True))
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("name", ["anp", "clp"])
def test_what_prunes_convolutions_refuses_a_transformer(name: str) -> None:
    method = METHOD_ADAPTER.validate_python({"name": name})
    with pytest.raises(InvalidSpec, match=rf"method {name} .* nad or argd"):
        check_applies(method, small_transformer(), (3, 8, 8))


def test_what_prunes_before_the_classifier_refuses_a_network_without_one() -> None:
    method = METHOD_ADAPTER.validate_python({"name": "fine_pruning"})
    with pytest.raises(InvalidSpec, match="no layer called"):
        check_applies(method, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE)
