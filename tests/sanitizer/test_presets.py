import pytest

from sanitizer.spec import METHOD_ADAPTER, PRESETS, ArgdConfig, FtSamConfig


@pytest.mark.parametrize(("name", "preset"), sorted(PRESETS))
def test_every_preset_is_a_configuration_of_its_method(name: str, preset: str) -> None:
    config = METHOD_ADAPTER.validate_python({"name": name, "preset": preset})
    assert config.name == name
    assert config.preset == preset


def test_fast_is_less_than_half_of_the_published_epochs() -> None:
    paper = METHOD_ADAPTER.validate_python({"name": "argd", "preset": "paper"})
    fast = METHOD_ADAPTER.validate_python({"name": "argd", "preset": "fast"})
    assert isinstance(paper, ArgdConfig)
    assert isinstance(fast, ArgdConfig)
    assert 2 * (fast.teacher.epochs + fast.student.epochs) < (
        paper.teacher.epochs + paper.student.epochs
    )


def test_what_is_given_beside_a_preset_replaces_its_value_alone() -> None:
    config = METHOD_ADAPTER.validate_python(
        {"name": "argd", "preset": "fast", "teacher": {"batch_size": 32}}
    )
    assert isinstance(config, ArgdConfig)
    assert config.teacher.batch_size == 32
    assert config.teacher.phases == config.student.phases
    assert config.student.batch_size == 64


@pytest.mark.parametrize("name", sorted({name for name, _ in PRESETS}))
def test_a_method_without_settings_is_its_published_result(name: str) -> None:
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
