"""`python -m tests.deploy.metrics_page > docs/metrics.md` writes the list of all metrics."""

import sys
from collections.abc import Sequence

from tests.deploy.exported import Family, service_families, worker_families

HEAD = """\
# Metrics

For Prometheus. Made by `python -m tests.deploy.metrics_page`; a test holds it against the code.

`docker/monitoring` has a configuration that scrapes both, alert rules and a Grafana dashboard.
Besides those below each process exports `process_...` (memory, CPU, open files), and for each
counter and histogram the time since when it counts, `..._created`.
"""
SERVICE = """
## The service

At `/metrics` of the API, without a key. What comes from the database is the same from every
replica: take `max`, not `sum`. A part that does not answer within 2 s is left out of the scrape,
and `sanitizer_component_up` says so. `sanitizer_jobs` and `sanitizer_store_bytes` may be 30 s old.
"""
WORKER = """
## A worker

At `SANITIZER_WORKER_METRICS_HOST` and `SANITIZER_WORKER_METRICS_PORT`; it does not answer while the
port is 0. Each process counts for itself, since its start.
"""


def metrics_page() -> str:
    """The page, in Markdown."""
    return HEAD + SERVICE + _table(service_families()) + WORKER + _table(worker_families())


def _table(families: Sequence[Family]) -> str:
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(family.labels)} | {family.help} |\n"
        for family in families
    ]
    return "\n| metric | type | labels | what |\n|---|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
