"""The web application: `uvicorn service.app:create_app --factory`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service import logs, openapi, problem_pages, problems
from service.catalog import endpoints as catalog
from service.datasets import endpoints as datasets
from service.db.session import for_writing
from service.health import endpoints as health
from service.health.metrics import JobMetrics, RequestMetrics
from service.jobs import endpoints as jobs
from service.keys import endpoints as keys
from service.middleware import BodyLimit, RequestContext
from service.models import endpoints as models
from service.queue import make_producer
from service.services import Services
from service.settings import Settings
from service.storage import make_store

UPLOAD_ROUTES = (("POST", "/v1/models"), ("POST", "/v1/datasets"))
"""They stream their body and have limits of their own."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; without settings, on those of the environment."""
    settings = settings or Settings()
    logs.configure(settings)
    registry = CollectorRegistry()
    services = Services(
        settings=settings,
        sessions=settings.sessions,
        write_sessions=for_writing(settings.sessions),
        store=make_store(settings.storage_url),
        queue=make_producer(settings),
        registry=registry,
    )
    registry.register(JobMetrics(services.sessions))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        services.sessions.kw["bind"].dispose()

    # Paths are exact: a redirect would lose the body of an upload.
    app = FastAPI(title=openapi.TITLE, lifespan=lifespan, redirect_slashes=False)
    app.state.services = services
    for part in (models, datasets, jobs, catalog, keys, health, problem_pages):
        app.include_router(part.router)
    problems.install(app)
    openapi.install(app)
    # The one added last is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_request_bytes, exempt=UPLOAD_ROUTES)
    app.add_middleware(RequestContext, metrics=RequestMetrics(registry))
    return app
