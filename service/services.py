"""What the routes work with: one of each per app."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from celery import Celery
from prometheus_client import CollectorRegistry

from service.db.session import SessionFactory
from service.settings import Settings
from service.storage import ObjectStore
from service.tracing import NoTracing, Tracing

HEALTH_THREADS = 8
"""For each thing that is asked how it is, and for the figures."""


@dataclass(frozen=True)
class Services:
    """Settings, database, store and queue of one app."""

    settings: Settings
    sessions: SessionFactory
    """For transactions that only read."""
    write_sessions: SessionFactory
    """For transactions that may write."""
    store: ObjectStore
    queue: Celery
    registry: CollectorRegistry
    tracing: Tracing = field(default_factory=NoTracing)
    health_threads: Mapping[str, CapacityLimiter] = field(
        default_factory=lambda: defaultdict(lambda: CapacityLimiter(HEALTH_THREADS))
    )
    """Of those who ask how the service is, by what they ask: requests that hang leave none of their
    own, and one thing that hangs takes none of another's."""
