"""What the routes work with: one of each per app."""

from dataclasses import dataclass, field

from celery import Celery
from prometheus_client import CollectorRegistry

from service.db.session import SessionFactory
from service.settings import Settings
from service.storage import ObjectStore
from service.tracing import NoTracing, Tracing


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
