"""The web application: `uvicorn service.app:create_app --factory`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from prometheus_client import CollectorRegistry
from starlette.concurrency import run_in_threadpool

from service import logs, openapi, problem_pages, problems
from service.catalog import endpoints as catalog
from service.datasets import endpoints as datasets
from service.db.session import for_writing
from service.dependencies import refuse_unknown_query
from service.health import endpoints as health
from service.health import metrics
from service.jobs import endpoints as jobs
from service.keys import endpoints as keys
from service.middleware import BodyLimit, RequestContext
from service.models import endpoints as models
from service.queue import make_producer
from service.services import Services
from service.settings import Settings
from service.storage import make_store
from service.tracing import NoTracing, make_tracing

UPLOAD_ROUTES = (("POST", "/v1/models"), ("POST", "/v1/datasets"))
"""They stream their body and have limits of their own."""

_EMPTY = """
<h1>Backdoor sanitizer: API</h1>
<p>Scripts from cdn.jsdelivr.net draw this page. If it stays like this, the browser cannot reach
them: the same is in <a href="{}">the OpenAPI document</a>, for any program that shows one.</p>
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; without settings, on those of the environment."""
    settings = settings or Settings()
    logs.configure(settings)
    tracing = make_tracing(settings, "sanitizer-api")
    services = Services(
        settings=settings,
        sessions=settings.sessions,
        write_sessions=for_writing(settings.sessions),
        store=make_store(settings),
        queue=make_producer(settings),
        registry=CollectorRegistry(),
        tracing=tracing,
    )
    request_metrics = metrics.install(services)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        services.sessions.kw["bind"].dispose()
        await run_in_threadpool(tracing.close)

    # Paths are exact: a redirect would lose the body of an upload.
    app = FastAPI(
        title=openapi.TITLE,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    for part in (models, datasets, jobs, catalog, keys):
        app.include_router(part.router, dependencies=[Depends(refuse_unknown_query)])
    for page in (health, problem_pages):
        app.include_router(page.router)
    app.add_api_route("/", _to_documentation, include_in_schema=False)
    app.add_api_route("/docs", _documentation, include_in_schema=False)
    problems.install(app)
    openapi.install(app)
    # The one added last is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_request_bytes, exempt=UPLOAD_ROUTES)
    if not isinstance(tracing, NoTracing):
        from service.request_spans import RequestSpans  # here: OpenTelemetry is an extra

        app.add_middleware(RequestSpans, spans=tracing)
    app.add_middleware(RequestContext, metrics=request_metrics)
    return app


def _documentation(request: Request) -> HTMLResponse:
    """Swagger's page. Its scripts put the API in place of what stands here until they are there."""
    described = request.scope.get("root_path", "").rstrip("/") + "/openapi.json"
    page = get_swagger_ui_html(
        openapi_url=described,
        title=f"{openapi.TITLE}: API",
        swagger_favicon_url="data:,",  # FastAPI's would be fetched from a stranger
    )
    text = bytes(page.body).decode().replace("<html>", '<html lang="en">')
    return HTMLResponse(
        text.replace('<div id="swagger-ui">', f'<div id="swagger-ui">{_EMPTY.format(described)}')
    )


def _to_documentation() -> RedirectResponse:
    """For whoever opens the address in a browser."""
    return RedirectResponse("/docs")
