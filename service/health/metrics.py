"""Figures for Prometheus: requests by route, jobs by status."""

from collections.abc import Iterable

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from service.db.session import SessionFactory, transaction
from service.db.tables import Job, JobStatus

log = structlog.get_logger(__name__)


class RequestMetrics:
    """Counts requests and their durations by route template, method and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "sanitizer_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sanitizer_http_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ["method", "route"],
            registry=registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class JobMetrics(Collector):
    """Jobs by status, read from the database when asked for."""

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when the registry is built."""
        return [_gauge()]

    def collect(self) -> Iterable[Metric]:
        """One sample a status, zeros included."""
        by_status = select(Job.status, func.count()).group_by(Job.status)
        try:
            with transaction(self._sessions) as session:
                counts = dict(session.execute(by_status).all())
        except OperationalError as error:
            # The figures of the requests are worth having without these.
            log.warning("jobs cannot be counted", reason=str(error))
            return []
        gauge = _gauge()
        for status in JobStatus:
            gauge.add_metric([status], counts.get(status, 0))
        return [gauge]


def _gauge() -> GaugeMetricFamily:
    return GaugeMetricFamily("sanitizer_jobs", "Jobs by status.", labels=["status"])
