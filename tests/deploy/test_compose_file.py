"""What docker-compose.yml hands on, without starting anything; tests/compose starts it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
PREFIX = "SANITIZER_"
OF_AN_IMAGE = {"WORK_DIR", "CHILD_COMMAND"}
"""Settings that belong to how an image is made."""


class _Loader(yaml.SafeLoader):
    """Knows the tags of Compose's own."""


_Loader.add_multi_constructor("!", lambda loader, _tag, node: loader.construct_sequence(node))


def services(*files: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in files:
        found |= yaml.load((ROOT / file).read_text(), _Loader)["services"]
    return found


def test_every_setting_reaches_a_container() -> None:
    handed_on = {
        name.removeprefix(PREFIX)
        for each in services("docker-compose.yml").values()
        for name in each.get("environment", {})
        if name.startswith(PREFIX)
    }
    known = {name.upper() for name in Settings.model_fields}
    assert handed_on <= known
    assert known - handed_on - OF_AN_IMAGE <= {"HOST", "PORT"}


def test_a_setting_that_nobody_set_is_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Settings(_env_file=None)
    for name, text in services("docker-compose.yml")["service"]["environment"].items():
        if text.endswith(":-}"):
            monkeypatch.setenv(name, "")
    assert Settings(_env_file=None) == defaults


def test_whoever_reads_the_store_has_a_way_out_where_it_is_asked_for() -> None:
    within = services("docker-compose.yml")
    with_it = services("docker/way-out.yml")
    shut_in = {
        name
        for name, each in within.items()
        if each.get("networks") == ["back"] and "SANITIZER_STORAGE_URL" in each["environment"]
    }
    assert shut_in == with_it.keys()
    assert all(each["networks"] == ["back", "out"] for each in with_it.values())
