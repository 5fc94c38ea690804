import pytest
from torch import nn

from sanitizer.errors import InvalidSpec
from sanitizer.methods.plan import TrainingStage, check_applies, plan
from sanitizer.spec import METHOD_ADAPTER, trainings_of
from tests.sanitizer.methods.networks import SHAPE, fresh, small_transformer

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


@pytest.mark.parametrize("name", ["anp", "clp"])
def test_what_prunes_convolutions_refuses_a_transformer(name: str) -> None:
    method = METHOD_ADAPTER.validate_python({"name": name})
    with pytest.raises(InvalidSpec, match=rf"method {name} .* nad or argd"):
        check_applies(method, small_transformer(), (3, 8, 8))


def test_what_prunes_before_the_classifier_refuses_a_network_without_one() -> None:
    method = METHOD_ADAPTER.validate_python({"name": "fine_pruning"})
    with pytest.raises(InvalidSpec, match="no layer called"):
        check_applies(method, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE)
