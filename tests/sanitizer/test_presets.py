import pytest

from sanitizer.spec import METHOD_ADAPTER, PRESETS, ArgdConfig


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
