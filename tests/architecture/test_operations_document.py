"""docs/operations.md is read when something is wrong: what it names has to be there."""

import re
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine, text

from service.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ALERTS = ROOT / "docker" / "monitoring" / "alerts.yml"
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

BLOCKS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
INLINE = re.findall(r'psql -c "(SELECT .*?)"', PAGE, re.DOTALL)
HEADINGS = re.findall(r"^#{1,4} (.+)$", PAGE, re.MULTILINE)


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


ANCHORS = {_anchor(heading) for heading in HEADINGS}


@pytest.mark.parametrize(
    "statements", [*BLOCKS, *INLINE], ids=lambda sql: " ".join(sql.split())[:50]
)
def test_sql_of_the_page_runs(statements: str, postgres_database: Engine) -> None:
    with postgres_database.connect() as connection:
        for statement in statements.split(";"):
            if statement.strip():
                connection.execute(text(statement))


def test_every_alert_has_its_section() -> None:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    runbooks = {
        rule["alert"]: rule["annotations"]["runbook"] for group in groups for rule in group["rules"]
    }
    assert runbooks
    assert runbooks == {name: f"docs/operations.md#{name.lower()}" for name in runbooks}
    assert {name for name in runbooks if name.lower() not in ANCHORS} == set()


def test_every_link_inside_the_page_leads_somewhere() -> None:
    targets = set(re.findall(r"\]\(#([^)]+)\)", PAGE.replace("\n", " ")))
    assert targets - ANCHORS == set()


def test_every_file_it_links_to_is_there() -> None:
    files = {link.partition("#")[0] for link in re.findall(r"\]\(([^)#][^)]*)\)", PAGE)}
    assert {name for name in files if not (ROOT / "docs" / name).is_file()} == set()


def test_every_setting_it_names_exists() -> None:
    known = {f"SANITIZER_{name.upper()}" for name in Settings.model_fields}
    known |= {"SANITIZER_VERSION", "SANITIZER_PORT"}  # of Compose
    named = set(re.findall(r"\bSANITIZER_[A-Z0-9_]*[A-Z0-9]\b", PAGE))
    assert {name for name in named if name not in known and name != "SANITIZER_S3"} == set()


def test_every_figure_it_names_exists() -> None:
    sources = [path for part in ("service", "worker") for path in (ROOT / part).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"`(sanitizer_\w+)", PAGE))
    assert named
    assert {name for name in named if f'"{name.removesuffix("_total")}"' not in code} == set()


@pytest.mark.parametrize(
    "part", ["service", "worker", "worker-gpu", "reconcile", "migrate", "postgres", "redis"]
)
def test_every_part_it_tells_of_is_in_compose(part: str) -> None:
    assert f"`{part}`" in PAGE
    assert part in yaml.safe_load(COMPOSE)["services"]
