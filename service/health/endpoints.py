"""Health over HTTP, for operators: no key is needed, and no tenant's data is shown."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import anyio
import anyio.to_thread
import redis.asyncio
import structlog
from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy import func, select, text

from service.db.base import utc_now
from service.db.session import transaction
from service.db.tables import WorkerRecord
from service.dependencies import ServicesDep
from service.health.schemas import ComponentOut, HealthOut, ReadinessOut
from service.services import Services

CHECK_SECONDS = 3.0
"""How long one component may take to answer."""

router = APIRouter(tags=["health"])

log = structlog.get_logger(__name__)


@router.get("/healthz", operation_id="get_health", summary="Is the process alive?")
async def health() -> HealthOut:
    """Answers as long as the process does."""
    return HealthOut(object="health", status="ok")


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Can the service do its work?",
    responses={503: {"model": ReadinessOut, "description": "A required component is down."}},
)
async def readiness(services: ServicesDep, response: Response) -> ReadinessOut:
    """Asks the database, the broker and the store; 503 if one of them is down.

    Whether workers report is shown too. Without them jobs wait, which is no reason to refuse them.
    """
    # All at once: each may take its time.
    components = await asyncio.gather(
        _check("database", _database, services),
        _check("broker", _broker, services),
        _check("store", _store, services),
        _check("workers", _workers, services, required=False),
    )
    ready = all(c.state == "up" for c in components if c.required)
    response.status_code = 200 if ready else 503
    return ReadinessOut(
        object="readiness", status="ready" if ready else "unready", components=list(components)
    )


@router.get(
    "/metrics",
    operation_id="get_prometheus_metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
)
async def metrics(services: ServicesDep) -> Response:
    """Requests and their durations; jobs, workers, queue and store; which components answer."""
    figures = await _in_a_thread(services, "figures", lambda: generate_latest(services.registry))
    return Response(figures, media_type=CONTENT_TYPE_PLAIN_0_0_4)


Check = Callable[[Services], Awaitable[str | None]]
_Answer = TypeVar("_Answer")


class _Down(Exception):
    """The component answers, but not as it should."""


async def _check(
    name: str, check: Check, services: Services, *, required: bool = True
) -> ComponentOut:
    try:
        with anyio.fail_after(CHECK_SECONDS):
            detail = await check(services)
    except _Down as error:
        return _component(name, "down", required, str(error))
    except TimeoutError:
        return _component(name, "down", required, f"no answer in {CHECK_SECONDS:g} s")
    except Exception as error:
        log.warning("component down", component=name, exc_info=error)
        # The message of a driver may hold addresses; this page is for everybody.
        return _component(name, "down", required, f"does not answer ({type(error).__name__})")
    return _component(name, "up", required, detail)


def _component(name: str, state: str, required: bool, detail: str | None) -> ComponentOut:
    return ComponentOut.model_validate(
        {"name": name, "state": state, "required": required, "detail": detail}
    )


async def _in_a_thread(services: Services, name: str, check: Callable[[], _Answer]) -> _Answer:
    # A thread that hangs is left behind: it ends by the time limits of its connection. Each thing
    # has threads of its own, so that one that hangs takes none of another's.
    return await anyio.to_thread.run_sync(
        check, abandon_on_cancel=True, limiter=services.health_threads[name]
    )


async def _database(services: Services) -> None:
    def ask() -> None:
        with transaction(services.sessions) as session:
            session.execute(text("SELECT 1"))

    await _in_a_thread(services, "database", ask)


async def _broker(services: Services) -> None:
    url = services.settings.broker_url.get_secret_value()
    async with redis.asyncio.from_url(
        url, socket_connect_timeout=1, socket_timeout=1, retry=None
    ) as client:
        await client.ping()


async def _store(services: Services) -> None:
    await _in_a_thread(services, "store", services.store.ping)


async def _workers(services: Services) -> str:
    def count() -> int:
        fresh = utc_now() - timedelta(seconds=services.settings.lease_seconds)
        with transaction(services.sessions) as session:
            return (
                session.scalar(
                    select(func.count())
                    .select_from(WorkerRecord)
                    .where(WorkerRecord.heartbeat_at >= fresh)
                )
                or 0
            )

    reporting = await _in_a_thread(services, "workers", count)
    if reporting == 0:
        raise _Down("none reports; jobs wait until one does")
    return f"{reporting} report"
