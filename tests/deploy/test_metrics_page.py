from pathlib import Path

from tests.deploy.exported import PREFIX, service_families, worker_families
from tests.deploy.metrics_page import metrics_page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_in_the_repository_is_that_of_the_code() -> None:
    """Renew it with `python -m tests.deploy.metrics_page > docs/metrics.md`."""
    assert PAGE.read_text() == metrics_page()


def test_every_metric_has_the_prefix_and_says_what_it_is() -> None:
    families = [*service_families(), *worker_families()]
    assert [f.name for f in families if not f.name.startswith(PREFIX) or not f.help] == []
