"""Every metric that the code exports, as the service and the worker register them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from pydantic import SecretStr

from service.db.session import for_writing
from service.health import metrics
from service.queue import make_producer
from service.services import Services
from service.settings import Settings
from service.storage import make_store
from worker.metrics import RunMetrics, make_registry

PREFIX = "sanitizer_"


@dataclass(frozen=True)
class Family:
    """One metric.

    Attributes:
        name: As Prometheus stores it; of a histogram without its suffix.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> frozenset[str]:
        """Names of its series."""
        if self.kind == "histogram":
            return frozenset(self.name + suffix for suffix in ("_bucket", "_count", "_sum"))
        return frozenset({self.name})


def service_families() -> list[Family]:
    """Those of the service; nothing is read for it, neither database nor broker."""
    with TemporaryDirectory() as folder:
        settings = Settings(
            _env_file=None,
            database_url=SecretStr("sqlite://"),
            broker_url=SecretStr("redis://127.0.0.1:1/0"),
            storage_url=f"file:{Path(folder)}",
        )
        registry = CollectorRegistry()
        metrics.install(
            Services(
                settings=settings,
                sessions=settings.sessions,
                write_sessions=for_writing(settings.sessions),
                store=make_store(settings),
                queue=make_producer(settings),
                registry=registry,
            )
        )
        settings.sessions.kw["bind"].dispose()
        return sorted(_families(registry), key=lambda family: family.name)


def worker_families() -> list[Family]:
    """Those of a worker."""
    registry = make_registry()
    RunMetrics(registry, device="cpu", slots=1)
    return sorted(_families(registry), key=lambda family: family.name)


def process_series() -> frozenset[str]:
    """Names of the series about the process itself, which prometheus_client knows how to read."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return frozenset(sample.name for family in registry.collect() for sample in family.samples)


def _families(registry: CollectorRegistry) -> Iterator[Family]:
    # The library has no way to ask for the labels of a metric that has no sample yet.
    collectors: dict[Any, list[str]] = registry._collector_to_names
    for collector in collectors:
        if isinstance(collector, ProcessCollector):
            continue
        for metric in collector.describe():
            labels: Iterable[str] = getattr(collector, "_labelnames", ()) or getattr(
                metric, "_labelnames", ()
            )
            if metric.type == "info":
                (found,) = collector.collect()
                labels = found.samples[0].labels
            suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
            yield Family(metric.name + suffix, metric.type, tuple(labels), metric.documentation)
