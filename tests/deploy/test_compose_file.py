"""What docker-compose.yml hands on, without starting anything; tests/compose starts it."""

import re
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
        if (text or "").endswith(":-}"):
            monkeypatch.setenv(name, "")
    assert Settings(_env_file=None) == defaults


VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?:(:?[-?])((?:[^{}]|\$\{[^{}]*\})*))?\}")


def interpolated(text: str, environment: dict[str, str]) -> str:
    """As Compose does it: with a colon what is empty counts as unset, too."""

    def value(match: re.Match[str]) -> str:
        name, how, rest = match.groups()
        given = environment.get(name)
        if given is not None and (given or not (how or "").startswith(":")):
            return given
        assert not (how or "").endswith("?"), f"{name}: {rest}"
        return interpolated(rest or "", environment)

    return VARIABLE.sub(value, text)


def settings_of(service: str, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    """What a container reads where `.env` has these and the secrets of `make env`."""
    secrets = {"POSTGRES_PASSWORD": "p", "REDIS_PASSWORD": "r"}
    for name in ("SANITIZER_S3_ACCESS_KEY_ID", "SANITIZER_S3_SECRET_ACCESS_KEY"):
        secrets[name] = "key"
    for name, text in services("docker-compose.yml")[service]["environment"].items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, interpolated(text, secrets | environment))
    return Settings(_env_file=None)


def test_the_store_beside_it_is_used_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of("worker", monkeypatch, S3_PORT="9001")
    assert settings.s3_endpoint == "http://s3:9000"
    assert settings.s3_public_endpoint == "http://127.0.0.1:9001"
    assert settings.s3_access_key_id == "key"


def test_amazons_store_is_used_by_the_role_of_the_machine_where_all_is_left_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("ENDPOINT", "PUBLIC_ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    empty = {f"SANITIZER_S3_{name}": "" for name in names}
    settings = settings_of("worker", monkeypatch, **empty)
    assert (settings.s3_endpoint, settings.s3_public_endpoint) == (None, None)
    assert (settings.s3_access_key_id, settings.s3_secret_access_key) == (None, None)


def test_secrets_that_nobody_made_are_asked_for() -> None:
    (text,) = {
        each["environment"]["SANITIZER_S3_ACCESS_KEY_ID"]
        for each in services("docker-compose.yml").values()
        if "SANITIZER_S3_ACCESS_KEY_ID" in each.get("environment", {})
    }
    with pytest.raises(AssertionError, match="run make env"):
        interpolated(text, {})


def test_nothing_is_pulled_that_only_another_service_builds() -> None:
    of_ours = {
        name: each
        for name, each in services("docker-compose.yml").items()
        if each["image"].startswith("backdoor-sanitizer-") and "build" not in each
    }
    assert of_ours.keys() == {"migrate", "reconcile"}
    assert {each["pull_policy"] for each in of_ours.values()} == {"never"}


def test_prometheus_looks_for_every_worker() -> None:
    page = yaml.safe_load((ROOT / "docker" / "monitoring" / "prometheus.yml").read_text())
    (job,) = [job for job in page["scrape_configs"] if job["job_name"] == "worker"]
    (looked_up,) = job["dns_sd_configs"]
    workers = {
        name
        for name in services("docker-compose.yml", "docker/more-gpus.yml")
        if name.startswith("worker")
    }
    assert workers <= set(looked_up["names"])
    assert len(workers) == 3


def test_the_api_estimates_with_the_threads_of_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = {"WORKER_SLOTS": "2", "WORKER_THREADS": "3"}
    for service in ("service", "worker"):
        settings = settings_of(service, monkeypatch, **chosen)
        assert (settings.slots, settings.threads_per_job) == (2, 3), service
    gpu = settings_of("worker-gpu", monkeypatch, **chosen)
    assert (gpu.slots, gpu.threads_per_job) == (1, None)


def test_variables_of_opentelemetry_that_the_page_names_are_handed_on() -> None:
    named = set(re.findall(r"OTEL_[A-Z_]+", (ROOT / "docs" / "tracing.md").read_text()))
    for service in ("service", "worker", "worker-gpu"):
        environment = services("docker-compose.yml")[service]["environment"]
        # With no value: as they are, and not at all where nobody set them.
        handed_on = {name for name, value in environment.items() if value is None}
        assert handed_on == named, service


def test_the_page_for_operators_lists_the_variables_that_are_composes_own() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("### Compose's own variables")[2].partition("\n\nOn one machine")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    files = [ROOT / "docker-compose.yml", *sorted((ROOT / "docker").glob("*.yml"))]
    found = {}
    for name, how, rest in VARIABLE.findall("".join(path.read_text() for path in files)):
        if name.removeprefix(PREFIX).lower() not in Settings.model_fields:
            default = f"`{rest}`" if rest else "unset"
            found[name] = "by `make env`" if how.endswith("?") else default
    assert listed == found


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
