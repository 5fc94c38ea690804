"""Around every request: its id, its line in the log, its size, errors that nobody foresaw."""

import re
import time
from collections.abc import Collection
from http import HTTPMethod
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors, problems
from service.health.metrics import RequestMetrics

REQUEST_ID_HEADER = "X-Request-ID"
SMALL_BODY = 16 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")

log = structlog.get_logger(__name__)


class RequestContext:
    """Gives each request an id, counts and logs it, and answers for errors that nobody foresaw.

    The id is the client's `X-Request-ID` if that is harmless, else a new one. It is in the answer,
    in problem documents and in every log line of the request; so is the tenant, once it is known.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        body = _Body(scope, receive)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if body.is_on_its_way:
                    # Or the server would go on reading what nobody wants, however long it is.
                    headers["Connection"] = "close"
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        try:
            await self._app(scope, body.receive, send_with_id)
        except ClientDisconnect:
            status = status or 499  # nginx's number for it; nobody is left to answer
        except Exception as error:
            if status:
                raise  # the answer has begun: all that is left is to break the connection
            log.exception("request failed", error=type(error).__name__)
            answer = problems.response(
                errors.ServiceError(
                    "The request failed by a mistake of the service; the operator's log has more."
                ),
                path=scope["path"],
                request_id=request_id,
            )
            await answer(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.observe(_known_method(scope), _route_template(scope), status, seconds)
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(seconds, 4),
            )


class _Body:
    """Watches how far the body of a request has come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        self._receive = receive
        # A small body has arrived with its head: nothing is gained by closing.
        self.is_on_its_way = "transfer-encoding" in headers or (
            length.isdecimal() and int(length) > SMALL_BODY
        )

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.is_on_its_way = False
        return message


class BodyLimit:
    """Refuses bodies that are larger than the limit; uploads have limits of their own."""

    def __init__(self, app: ASGIApp, limit: int, exempt: Collection[tuple[str, str]]) -> None:
        """`exempt` has (method, path) pairs of the routes that stream their body."""
        self._app = app
        self._limit = limit
        self._exempt = frozenset(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) in self._exempt:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            error = errors.ContentTooLarge(self._limit, int(announced))
            answer = problems.response(
                error, path=scope["path"], request_id=scope["state"]["request_id"]
            )
            await answer(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise problems.BodyTooLarge(self._limit)
            return message

        await self._app(scope, receive_limited, send)


def _route_template(scope: Scope) -> str:
    """The path with its parameters as names, so that there are few of them."""
    path: str = getattr(scope.get("route"), "path", "unmatched")
    return path


def _known_method(scope: Scope) -> str:
    """The verb; `other` for what a client made up."""
    method: str = scope["method"]
    return method if method in HTTPMethod.__members__ else "other"
