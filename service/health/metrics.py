"""Figures for Prometheus: requests by route, and the state of the whole platform."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sanitizer.spec import Device
from service import queue
from service.build_info import add_build_info
from service.db.session import transaction
from service.db.tables import JobStatus
from service.health.readings import Reading
from service.health.repository import FigureRepository, Reporting, Waiting
from service.services import Services

READ_SECONDS = 2.0
"""How long a scrape waits for the database, the broker and the store together."""
KEEP_SECONDS = 30.0
"""How long figures are given again that cost more than a look at an index."""
ANY = "any"
"""Label of jobs that take whatever device the worker has."""
UNLISTED = "unlisted"
"""Label of jobs whose worker is not in the table of workers."""
DEVICES = (Device.CPU.value, Device.CUDA.value)


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


@dataclass(frozen=True)
class Fleet:
    """Who waits and who works, as the rows of one moment say."""

    waiting: Mapping[str | None, Waiting]
    reporting: Mapping[str, Reporting]
    silent: Mapping[str, int]
    busy: Mapping[str | None, int]
    expired: int


@dataclass(frozen=True)
class Inventory:
    """What has piled up; read less often."""

    jobs: Mapping[str, int]
    stored_bytes: Mapping[str, int]


class PlatformMetrics(Collector):
    """What database, broker and store say when Prometheus asks.

    The parts are read side by side. One that is down, or slow, leaves its figures out, and says so
    in `sanitizer_component_up`: the others are worth having without it.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._fleet = Reading("database", self._read_fleet)
        self._inventory = Reading("inventory", self._read_inventory, keep_seconds=KEEP_SECONDS)
        self._messages = Reading(
            "broker", lambda: sum(queue.count_messages(services.queue).values())
        )
        self._store = Reading("store", self._ping_store, keep_seconds=KEEP_SECONDS)

    def describe(self) -> Iterable[Metric]:
        """Every family, without samples: nothing is read when the registry is built."""
        return [
            *_fleet_families(),
            *_inventory_families(),
            *_broker_families(),
            _component_family(),
        ]

    def collect(self) -> Iterable[Metric]:
        """The families of the parts that answer."""
        deadline = time.monotonic() + READ_SECONDS
        # All begin before the first is waited for.
        fleet_read, inventory_read = self._fleet.begin(), self._inventory.begin()
        messages_read, store_read = self._messages.begin(), self._store.begin()
        fleet = self._fleet.wait(fleet_read, deadline)
        inventory = self._inventory.wait(inventory_read, deadline)
        messages = self._messages.wait(messages_read, deadline)
        store = self._store.wait(store_read, deadline)
        up = _component_family()
        for component, answer in (("database", fleet), ("broker", messages), ("store", store)):
            up.add_metric([component], answer is not None)
        return [
            up,
            *([] if fleet is None else _fleet_families(fleet)),
            *([] if inventory is None else _inventory_families(inventory)),
            *([] if messages is None else _broker_families(messages)),
        ]

    def _read_fleet(self) -> Fleet:
        silence = self._services.settings.lease_seconds
        with transaction(self._services.sessions) as session:
            figures = FigureRepository.from_session(session)
            now = figures.now()
            return Fleet(
                waiting=figures.waiting(now),
                reporting=figures.reporting(now, silence),
                silent=figures.silent(now, silence),
                busy=figures.busy(),
                expired=figures.expired(now),
            )

    def _read_inventory(self) -> Inventory:
        with transaction(self._services.sessions) as session:
            figures = FigureRepository.from_session(session)
            return Inventory(figures.jobs_by_status(), figures.stored_bytes())

    def _ping_store(self) -> bool:
        self._services.store.ping()
        return True


def install(services: Services) -> RequestMetrics:
    """Puts all figures of the service into its registry; gives what counts requests."""
    registry = services.registry
    add_build_info(registry)
    ProcessCollector(registry=registry)
    registry.register(PlatformMetrics(services))
    return RequestMetrics(registry)


# --- Families ------------------------------------------------------------------------------------


def _fleet_families(fleet: Fleet | None = None) -> list[Metric]:
    waiting = GaugeMetricFamily(
        "sanitizer_jobs_waiting",
        "Queued jobs, by the device that they ask for.",
        labels=["device"],
    )
    oldest = GaugeMetricFamily(
        "sanitizer_oldest_waiting_job_seconds",
        "How long the job that has waited longest has done so, by the device it asks for; 0: none.",
        labels=["device"],
    )
    workers = GaugeMetricFamily(
        "sanitizer_workers", "Workers that report, by device.", labels=["device"]
    )
    slots = GaugeMetricFamily(
        "sanitizer_slots", "Jobs that the reporting workers can run at a time.", labels=["device"]
    )
    busy = GaugeMetricFamily(
        "sanitizer_slots_busy",
        "Jobs that run, by the device of their worker; `unlisted`: the worker is gone.",
        labels=["device"],
    )
    silent = GaugeMetricFamily(
        "sanitizer_workers_silent",
        "Workers that fell silent in the last day without signing off.",
        labels=["device"],
    )
    expired = GaugeMetricFamily(
        "sanitizer_leases_expired", "Jobs whose lease has run out and that nobody has taken back."
    )
    if fleet is not None:
        for device in (None, *DEVICES):
            there = fleet.waiting.get(device, Waiting(0, 0.0))
            waiting.add_metric([device or ANY], there.jobs)
            oldest.add_metric([device or ANY], there.oldest_seconds)
        for device in DEVICES:
            reporting = fleet.reporting.get(device, Reporting(0, 0))
            workers.add_metric([device], reporting.workers)
            slots.add_metric([device], reporting.slots)
            silent.add_metric([device], fleet.silent.get(device, 0))
        for device in (*DEVICES, None):
            busy.add_metric([device or UNLISTED], fleet.busy.get(device, 0))
        expired.add_metric([], fleet.expired)
    return [waiting, oldest, workers, slots, busy, silent, expired]


def _inventory_families(inventory: Inventory | None = None) -> list[Metric]:
    jobs = GaugeMetricFamily("sanitizer_jobs", "Jobs by status.", labels=["status"])
    stored = GaugeMetricFamily(
        "sanitizer_store_bytes",
        "Bytes of the files that rows point at, by kind: `models` (sanitized ones too), `datasets`,"
        " `artifacts` (reports and pictures).",
        labels=["kind"],
    )
    if inventory is not None:
        for status in JobStatus:
            jobs.add_metric([status], inventory.jobs.get(status, 0))
        for kind, total in inventory.stored_bytes.items():
            stored.add_metric([kind], total)
    return [jobs, stored]


def _broker_families(messages: int | None = None) -> list[Metric]:
    return [
        GaugeMetricFamily(
            "sanitizer_queue_messages",
            "Messages in the broker that no worker has taken yet.",
            value=messages,
        )
    ]


def _component_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "sanitizer_component_up",
        "Whether the database, the broker and the store answer this service: 1 or 0.",
        labels=["component"],
    )
