"""What the routes work with: one of each per app."""

from dataclasses import dataclass, field

from anyio import CapacityLimiter
from celery import Celery
from prometheus_client import CollectorRegistry

from service.db.session import SessionFactory
from service.settings import Settings
from service.storage import ObjectStore
from service.tracing import NoTracing, Tracing

HEALTH_THREADS = 8
"""Readiness takes three at a time, figures one."""


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
    health_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(HEALTH_THREADS))
    """Of those who ask how the service is: requests that hang leave none of their own."""
