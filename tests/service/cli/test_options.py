from pathlib import Path
from typing import Any

import pytest

from sanitizer.spec import METHOD_ADAPTER
from service.cli.failures import WrongUsage
from service.cli.options import (
    class_names,
    given,
    method_config,
    numbers,
    pairs,
    read_json,
    read_probes,
    size,
)


def test_settings_with_dots_become_nested_fields() -> None:
    config = method_config("argd", "paper", ["student.batch_size=32", "teacher.momentum=0.5"])
    assert config == {
        "name": "argd",
        "preset": "paper",
        "student": {"batch_size": 32},
        "teacher": {"momentum": 0.5},
    }
    METHOD_ADAPTER.validate_python(config)


def test_values_are_json_where_they_can_be() -> None:
    settings = ["a=[1, 2]", "b=true", "c=text", "d=null", "e=x=y"]
    config = method_config(None, None, settings)
    assert config == {"name": "argd", "a": [1, 2], "b": True, "c": "text", "d": None, "e": "x=y"}


def test_nothing_said_of_the_method_gives_none() -> None:
    assert method_config(None, None, []) is None


@pytest.mark.parametrize(
    "settings", [["a=1", "a.b=2"], ["a.b=2", "a=1"], ["a"], ["=1"], ["a=1", "a=2"]]
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str]) -> None:
    with pytest.raises(WrongUsage):
        method_config("argd", None, settings)


def test_sizes_are_height_and_width() -> None:
    assert size("32x48") == [32, 48]


@pytest.mark.parametrize("text", ["32", "32x", "axb", "1x2x3", "-1x2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(WrongUsage, match="HEIGHTxWIDTH"):
        size(text)


def test_numbers_are_read_with_commas_between() -> None:
    assert numbers("0.5,0.25", "--mean") == [0.5, 0.25]
    with pytest.raises(WrongUsage, match="--mean"):
        numbers("half", "--mean")


def test_a_value_may_hold_an_equals_sign() -> None:
    assert pairs(["k=a=b"], "--metadata") == {"k": "a=b"}


def test_fields_without_a_value_are_left_out() -> None:
    assert given(a=None, b=0, c="") == {"b": 0, "c": ""}


@pytest.mark.parametrize(
    ("text", "count"), [('{"kind": "patch"}', 1), ('[{"kind": "a"}, {"kind": "b"}]', 2)]
)
def test_a_probe_file_holds_one_probe_or_several(tmp_path: Path, text: str, count: int) -> None:
    path = tmp_path / "probe.json"
    path.write_text(text)
    probes: list[Any] = read_probes([path])
    assert len(probes) == count


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text("{")
    with pytest.raises(WrongUsage, match=r"probe\.json is no JSON"):
        read_json(path)
    with pytest.raises(WrongUsage, match="cannot be read: No such file"):
        read_json(tmp_path / "missing.json")


def test_class_names_are_given_in_three_ways(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\N{BYTE ORDER MARK}cat, big\r\ndog\n\n".encode())
    assert class_names("cat, dog ,bird") == ["cat", "dog", "bird"]
    assert class_names('["cat, big", "dog"]') == ["cat, big", "dog"]
    assert class_names(f"@{file}") == ["cat, big", "dog"]


@pytest.mark.parametrize("text", ['["cat"', "[1, 2]", '{"a": 1}', "@no-such-file"])
def test_class_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(WrongUsage):
        class_names(text)
