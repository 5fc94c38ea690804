import pytest
import torch
from pydantic import ValidationError

from sanitizer.cost.workload import training_work
from sanitizer.spec import (
    METHOD_ADAPTER,
    PRESETS,
    ArgdConfig,
    AutoConfig,
    FstConfig,
    FtSamConfig,
    MethodConfig,
    Preset,
    Training,
)


def passes_of(config: MethodConfig) -> float:
    """Work per clean image, in forward passes."""
    return sum(work.passes * work.epochs for work in training_work(config, 1))


@pytest.mark.parametrize(("name", "preset"), sorted(PRESETS))
def test_every_preset_is_a_configuration_of_its_method(name: str, preset: str) -> None:
    config = METHOD_ADAPTER.validate_python({"name": name, "preset": preset})
    assert config.name == name
    assert config.preset == preset


def test_fast_does_less_than_half_of_the_published_work() -> None:
    fast, paper = (
        METHOD_ADAPTER.validate_python({"name": "argd", "preset": preset})
        for preset in ("fast", "paper")
    )
    assert 2 * passes_of(fast) < passes_of(paper)


def test_what_is_given_beside_a_preset_replaces_its_value_alone() -> None:
    config = METHOD_ADAPTER.validate_python(
        {"name": "argd", "preset": "fast", "teacher": {"batch_size": 32}}
    )
    assert isinstance(config, ArgdConfig)
    assert config.teacher.batch_size == 32
    fast = METHOD_ADAPTER.validate_python({"name": "argd", "preset": "fast"})
    assert isinstance(fast, ArgdConfig)
    assert config.teacher.phases == fast.teacher.phases
    assert config.student == fast.student


def test_the_published_settings_of_argd_are_those_of_the_paper() -> None:
    paper = METHOD_ADAPTER.validate_python({"name": "argd", "preset": "paper"})
    assert isinstance(paper, ArgdConfig)
    assert paper.teacher == paper.student == Training()
    assert not paper.hardening.is_on
    assert (paper.classifier_shift, paper.node_scale, paper.student_from) == (0, 1, "suspect")


def test_argd_that_names_no_preset_is_the_default_and_does_hardly_more_work_than_published() -> (
    None
):
    default = METHOD_ADAPTER.validate_python({"name": "argd"})
    paper = METHOD_ADAPTER.validate_python({"name": "argd", "preset": "paper"})
    assert isinstance(default, ArgdConfig)
    assert default.preset == "default"
    assert default.hardening.is_on
    assert passes_of(default) <= passes_of(paper)


def test_one_setting_of_the_hardening_is_changed_alone() -> None:
    asked = {"name": "argd", "hardening": {"perturbation": 3}}
    config = METHOD_ADAPTER.validate_python(asked)
    assert isinstance(config, ArgdConfig)
    assert (config.hardening.perturbation, config.hardening.rho) == (3, 2)
    assert (config.student_hardening.perturbation, config.student_hardening.rho) == (0, 2)
    config = METHOD_ADAPTER.validate_python(asked | {"preset": "paper"})
    assert isinstance(config, ArgdConfig)
    assert (config.hardening.perturbation, config.hardening.rho) == (3, 0)
    assert not config.student_hardening.is_on


def test_one_cycle_rises_and_falls_by_epoch() -> None:
    rates = [phase.learning_rate for phase in ArgdConfig().teacher.phases]
    assert rates == [*sorted(rates[:2]), *sorted(rates[2:], reverse=True)]
    assert 0.015 < max(rates) <= 0.02
    assert rates[-1] < 0.002


@pytest.mark.parametrize("name", sorted({name for name, _ in PRESETS}))
def test_a_method_without_settings_is_its_first_preset(name: str) -> None:
    named = METHOD_ADAPTER.validate_python({"name": name})
    assert type(named)() == named
    for field, value in type(named).model_fields.items():
        if not value.is_required():
            assert getattr(named, field) == value.default, field


def test_a_training_of_its_own_keeps_what_is_not_given() -> None:
    config = METHOD_ADAPTER.validate_python({"name": "ft_sam", "training": {"momentum": 0}})
    assert isinstance(config, FtSamConfig)
    assert config.training.momentum == 0
    assert (config.training.batch_size, config.training.epochs) == (256, 100)


def test_the_cosine_falls_from_the_learning_rate_to_next_to_nothing() -> None:
    phases = FtSamConfig().training.phases
    rates = [phase.learning_rate for phase in phases]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert rates[-1] < 0.0001
    assert sum(rates) / len(rates) == pytest.approx(0.005, rel=0.001)


def test_the_published_settings_of_fst_are_those_of_its_code() -> None:
    training = FstConfig().training
    assert (training.weight_decay, training.batch_size, training.epochs) == (0, 128, 10)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for epoch in range(10):
        assert training.learning_rate(epoch) == pytest.approx(schedule.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        schedule.step()
    tried = AutoConfig().fst.training
    assert tried.phases == training.phases


@pytest.mark.parametrize("name", ["nad", "ft_sam", "clp"])
def test_a_preset_that_a_method_has_not_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="preset"):
        METHOD_ADAPTER.validate_python({"name": name, "preset": "default"})


def test_a_setting_of_a_tried_method_is_changed_alone() -> None:
    config = METHOD_ADAPTER.validate_python({"name": "auto", "ft_sam": {"rho": 1}})
    assert isinstance(config, AutoConfig)
    assert config.ft_sam.rho == 1
    assert config.ft_sam.preset is Preset.FAST
    assert [each.name for each in config.tries] == ["argd", "ft_sam", "fst"]
    assert config.argd == ArgdConfig()
    backwards = METHOD_ADAPTER.validate_python({"name": "auto", "methods": ["fst", "argd"]})
    assert isinstance(backwards, AutoConfig)
    assert [each.name for each in backwards.tries] == ["fst", "argd"]


@pytest.mark.parametrize("methods", [[], ["argd", "argd"], ["clp"]])
def test_what_cannot_be_tried_is_refused(methods: list[str]) -> None:
    with pytest.raises(ValidationError, match="methods"):
        METHOD_ADAPTER.validate_python({"name": "auto", "methods": methods})
