"""What routes ask for: who calls, a transaction, a page of a list."""

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Annotated, Any

import structlog
from fastapi import Depends, Query, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import outbox
from service.db.repository import DATABASE_AWAY
from service.db.session import transaction
from service.db.tables import Scope
from service.errors import FieldError, Forbidden, InvalidRequest, Unauthenticated
from service.keys import service as keys
from service.keys.service import Caller
from service.pagination import DEFAULT_LIMIT, MAX_LIMIT, coerce_limit, decode_cursor
from service.services import Services

log = structlog.get_logger(__name__)


async def get_services(request: Request) -> Services:
    """The services of the app. Not for a thread: those are for what waits."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]

# --- Who calls -----------------------------------------------------------------------------------

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    bearerFormat="bds_...",
    description="A key of the service: `Authorization: Bearer bds_...`.",
)


class KeyedRoute(APIRoute):
    """A route that asks for a key before it reads the body.

    FastAPI reads and parses a body first and asks dependencies afterwards: strangers would have
    theirs held in memory.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, behind the check of the key."""
        handle = super().get_route_handler()

        async def handle_known(request: Request) -> Response:
            request.state.caller = await _identify(request)
            return await handle(request)

        return handle_known


async def _identify(request: Request) -> Caller:
    """Who sends the request; from here on its tenant is in every line of the log."""
    credentials = await _bearer(request)
    if credentials is None:
        raise Unauthenticated("No key came. Send it as `Authorization: Bearer bds_...`.")
    caller = await run_in_threadpool(
        _authenticate, request.app.state.services, credentials.credentials
    )
    # Here and not in the thread: what a thread binds ends with it.
    structlog.contextvars.bind_contextvars(tenant_id=caller.tenant_id)
    request.state.tenant_id = caller.tenant_id  # for its span
    return caller


async def get_caller(
    request: Request,
    _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Who sends the request, as its `KeyedRoute` found out; OpenAPI learns that it has a key."""
    caller: Caller = request.state.caller
    return caller


def _authenticate(services: Services, secret: str) -> Caller:
    """Finds whose key it is.

    A short transaction of its own: uploads and streams must not hold one while they run, and that a
    key was used is true even if the request fails.
    """
    with transaction(services.sessions) as session:
        row = keys.authenticate(session, secret)
    if keys.use_is_due(row):
        try:
            with transaction(services.write_sessions) as session:
                keys.note_use(session, row.id)
        except DATABASE_AWAY:
            log.warning("the use of a key could not be noted", key_id=row.id)
    return Caller(row.tenant_id, row.id, keys.with_included(row.scopes))


def _require(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    async def check(caller: Annotated[Caller, Depends(get_caller)]) -> Caller:
        if scope not in caller.scopes:
            raise Forbidden(scope, sorted(caller.scopes))
        return caller

    return check


Reader = Annotated[Caller, Depends(_require(Scope.READ))]
Writer = Annotated[Caller, Depends(_require(Scope.WRITE))]
Admin = Annotated[Caller, Depends(_require(Scope.ADMIN))]

# --- The transaction of a request ----------------------------------------------------------------


def _read_session(services: ServicesDep) -> Iterator[Session]:
    with transaction(services.sessions) as session:
        yield session


def _write_session(services: ServicesDep) -> Iterator[Session]:
    with services.write_sessions() as session:
        with session.begin():
            yield session
        outbox.deliver(services, session)


# `function`: the transaction is committed before the answer leaves. The default would commit after
# it, and a client could then hold a 202 for a job that was never stored.
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]

# --- The query -----------------------------------------------------------------------------------


PAGING = frozenset({"limit", "after"})
"""Let pass everywhere: clients that read lists page by page send them to short ones, too."""


async def refuse_unknown_query(
    request: Request,
    caller: Annotated[Caller, Depends(get_caller)],  # noqa: ARG001  # strangers learn nothing
) -> None:
    """A misspelt filter must not answer with everything.

    Raises:
        InvalidRequest: The query has a parameter that the path does not know.
    """
    known = _query_names(request.scope["route"].dependant)
    unknown = [name for name in request.query_params if name not in known | PAGING]
    if unknown:
        choice = f"it knows {', '.join(sorted(known))}" if known else "it knows none"
        raise InvalidRequest(
            f"{request.url.path} has no query parameter {unknown[0]}: {choice}.",
            errors=[FieldError(f"/query/{name}", "is not known here") for name in unknown],
        )


def _query_names(dependant: Dependant) -> set[str]:
    names = {field.alias for field in dependant.query_params}
    return names.union(*map(_query_names, dependant.dependencies))


# --- Pages ---------------------------------------------------------------------------------------


def _at_most(items: int) -> Any:
    """The query parameter of a page that has so many items at most."""
    return Query(
        ge=1,
        le=2**31 - 1,
        description=f"Items on a page. More than {items:,} gives {items:,}.",
    )


Limit = Annotated[int, _at_most(MAX_LIMIT)]
LongLimit = Annotated[int, _at_most(1000)]


class PageRequest:
    """Which page of a list is asked for."""

    def __init__(
        self,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[
            str | None,
            Query(max_length=200, description="The `next_cursor` of the page before."),
        ] = None,
    ) -> None:
        self.limit = coerce_limit(limit)
        try:
            self.after = decode_cursor(after) if after is not None else None
        except ValueError as error:
            raise InvalidRequest(
                "after is no cursor of this list; give the `next_cursor` of the page before.",
                errors=[FieldError("/query/after", "is no cursor of this list")],
            ) from error


Paging = Annotated[PageRequest, Depends()]
