"""What a specification refuses."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from sanitizer.faults import in_words
from sanitizer.spec import METHOD_ADAPTER, PRESETS, SanitizeSpec


def validate(**changes: Any) -> SanitizeSpec:
    return SanitizeSpec.model_validate(
        {"model": {"path": "suspect.pth"}, "clean_data": {"path": "clean.npz"}, **changes}
    )


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ({"name": "finetune", "training": {"batch_size": 3}}, "training"),
        ({"name": "argd", "teacher": {"batch_size": 3}}, "teacher"),
        ({"name": "nad", "student": {"batch_size": 3}}, "student"),
    ],
)
def test_more_devices_than_a_batch_has_images_are_refused(
    method: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError, match=f"method.{field}.batch_size is 3, and 4 devices"):
        validate(method=method, devices=4)


def test_as_many_devices_as_a_batch_has_images_are_taken() -> None:
    method = {"name": "finetune", "training": {"batch_size": 4}}
    assert validate(method=method, devices=4).devices == 4


@pytest.mark.parametrize("devices", [0, 65])
def test_number_of_devices_has_bounds(devices: int) -> None:
    with pytest.raises(ValidationError, match="devices"):
        validate(devices=devices)


def test_one_device_is_what_a_run_has_that_does_not_say() -> None:
    assert validate().devices == 1


@pytest.mark.parametrize(
    ("field", "values"), [("mean", [125.3, 123.0, 113.9]), ("mean", [-1.5]), ("std", [63.0])]
)
def test_a_mean_or_std_for_inputs_up_to_255_is_refused(field: str, values: list[float]) -> None:
    with pytest.raises(ValidationError, match=rf"{values[0]:g} came.*a {field} of .*by 255"):
        validate(model={"path": "suspect.pth", field: values})


@pytest.mark.parametrize(
    ("mean", "std"), [([0.0], [1.0]), ([0.5], [1 / 255]), ([-1.0, 1.0], [1.0, 0.2])]
)
def test_a_mean_and_std_for_inputs_up_to_1_are_taken(mean: list[float], std: list[float]) -> None:
    model = validate(model={"path": "suspect.pth", "mean": mean, "std": std}).model
    assert (model.mean, model.std) == (tuple(mean), tuple(std))


def said_of(**changes: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        validate(**changes)
    return [in_words(fault) for fault in caught.value.errors()]


def test_a_setting_at_the_wrong_place_is_told_where_it_belongs() -> None:
    assert said_of(method={"name": "argd", "batch_size": 8}) == [
        "there is no such field; did you mean teacher.batch_size or student.batch_size?"
    ]


def test_a_misspelt_field_is_told_what_it_may_be_and_other_faults_are_told_too() -> None:
    said = said_of(method={"name": "nad", "student": {"batchsize": 1, "momentum": 7}}, sed=1)
    assert said == [
        "Input should be less than 1",
        "there is no such field; did you mean batch_size or easy_batch_size?",
        "there is no such field; did you mean seed?",
    ]


def test_a_field_like_no_other_is_told_which_there_are() -> None:
    assert said_of(policy={"colour": "red"}) == [
        "there is no such field; there are max_asr, max_accuracy_drop, min_accuracy"
    ]


def test_choices_are_listed_as_a_request_has_them() -> None:
    assert said_of(method={"name": "finetune", "preset": "default"}) == [
        "Input should be 'paper' or 'fast'"
    ]
    (said,) = said_of(method={"name": "x" * 100})
    assert said.startswith(f"there is no name '{'x' * 60}...'; there are 'finetune', 'nad'")


def values_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """What a client that is generated from a schema sends of itself: every default there is."""
    sent = {}
    for name, field in schema["properties"].items():
        whole = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        if "properties" in whole:
            sent[name] = {**field.get("default", {}), **values_of(whole, definitions)}
        elif "default" in field:
            sent[name] = field["default"]
    return sent


@pytest.mark.parametrize(("method", "preset"), [(str(m), str(p)) for m, p in PRESETS])
def test_defaults_of_the_schema_sent_along_do_not_undo_a_preset(method: str, preset: str) -> None:
    document = METHOD_ADAPTER.json_schema()
    definitions = document["$defs"]
    schema = definitions[document["discriminator"]["mapping"][method].rpartition("/")[2]]
    sent = {**values_of(schema, definitions), "preset": preset}
    assert sent["name"] == method
    asked_for = METHOD_ADAPTER.validate_python({"name": method, "preset": preset})
    assert METHOD_ADAPTER.validate_python(sent) == asked_for


def test_what_tells_members_of_a_union_apart_is_required_in_their_schemas() -> None:
    for name, config in SanitizeSpec.model_json_schema()["$defs"].items():
        if name.endswith("Probe"):
            assert "kind" in config["required"]
        if name.endswith("Config"):
            assert "name" in config["required"]
