"""Prometheus configuration, alert rules and dashboard: whole, and true to the code and the docs."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.exported import Family, process_series, service_families, worker_families

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "sanitizer.json"
PROVISIONING = FOLDER / "grafana" / "provisioning"

_SERIES = re.compile(r"\b((?:sanitizer|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPING = re.compile(r"\b(?:by|without) \(([^)]*)\)")
_ADDED = {"job", "instance", "le"}
"""Labels that Prometheus itself, or the kind of metric, adds."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in load(FOLDER / "alerts.yml")["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions() -> dict[str, str]:
    """Every expression of rules and dashboard, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in alerts()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


def families_by_series() -> dict[str, Family]:
    families = [*service_families(), *worker_families()]
    return {series: family for family in families for series in family.series}


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yml")), ids=lambda p: p.name)
def test_every_file_is_yaml(path: Path) -> None:
    assert isinstance(load(path), dict)


@pytest.mark.parametrize("where", expressions())
def test_expression_asks_for_metrics_and_labels_that_the_code_exports(where: str) -> None:
    expression = expressions()[where]
    exported = families_by_series()
    known_labels = set(_ADDED)
    asked = _SERIES.findall(expression)
    assert asked or expression == "up == 0"
    for name, matchers in asked:
        if name in process_series():
            continue
        assert name in exported, f"{where}: nothing exports {name}"
        labels = set(exported[name].labels) | _ADDED
        known_labels |= labels
        assert set(_MATCHER.findall(matchers)) <= labels, f"{where}: {name} has {labels}"
    for grouped in _GROUPING.findall(expression):
        assert {label.strip() for label in grouped.split(",") if label.strip()} <= known_labels


def test_routes_that_alerts_leave_out_are_routes_of_the_api() -> None:
    routes = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    slow = next(rule["expr"] for rule in alerts() if rule["alert"] == "ApiSlow")
    pattern = re.search(r'route!~"([^"]+)"', slow)
    assert pattern is not None
    for part in pattern[1].split("|"):
        assert any(re.fullmatch(part, route) for route in routes), part


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert all(text.strip() for text in rule["annotations"].values())
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_runbook_of_the_alert_has_its_heading(rule: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert re.search(rf"^#+ {rule['alert']}$", page, re.MULTILINE), "no heading of its name"


def test_every_alert_has_a_test() -> None:
    tested = {
        case["alertname"]
        for test in load(FOLDER / "alerts.test.yml")["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tested == {rule["alert"] for rule in alerts()}


def test_dashboard_and_its_data_source_know_each_other() -> None:
    (source,) = load(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    wanted = {"type": "prometheus", "uid": source["uid"]}
    for panel in panels():
        assert panel["datasource"] == wanted
        assert [target["datasource"] for target in panel["targets"]] == [wanted] * len(
            panel["targets"]
        )


def test_panels_have_names_of_their_own_and_do_not_overlap() -> None:
    seen: dict[tuple[int, int], str] = {}
    document = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    assert len({panel["title"] for panel in document["panels"]}) == len(document["panels"])
    for panel in document["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in seen, f"{panel['title']} lies over {seen[x, y]}"
                seen[x, y] = panel["title"]


def test_prometheus_scrapes_the_ports_that_compose_opens() -> None:
    scraped = {job["job_name"]: job for job in load(FOLDER / "prometheus.yml")["scrape_configs"]}
    services = load(ROOT / "docker-compose.yml")["services"]
    assert scraped["service"]["static_configs"] == [{"targets": ["service:8000"]}]
    assert services["service"]["ports"][0].endswith(":8000")
    (found,) = scraped["worker"]["dns_sd_configs"]
    for name in ("worker", "worker-gpu"):
        assert name in found["names"]
        environment = services[name]["environment"]
        assert environment["SANITIZER_WORKER_METRICS_PORT"] == str(found["port"])


class TestPromtool:
    """What Prometheus itself says; `make check-monitoring` fails where it is not there."""

    @pytest.fixture
    def promtool(self) -> str:
        found = shutil.which("promtool", path=os.environ.get("PROMTOOL")) or shutil.which(
            "promtool"
        )
        if found is None:
            pytest.skip("no promtool on PATH or in PROMTOOL: Debian's package prometheus has it")
        return found

    @pytest.mark.parametrize(
        "arguments",
        [
            ("check", "config", "prometheus.yml"),
            ("check", "rules", "alerts.yml"),
            ("test", "rules", "alerts.test.yml"),
        ],
        ids=lambda arguments: " ".join(arguments[:2]),
    )
    def test_it_finds_nothing(self, promtool: str, arguments: tuple[str, ...]) -> None:
        ran = subprocess.run(
            [promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def test_every_expression_of_the_dashboard_is_one(self, promtool: str, tmp_path: Path) -> None:
        rules = [
            {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
            for number, expression in enumerate(expressions().values())
        ]
        path = tmp_path / "panels.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
        ran = subprocess.run(
            [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
