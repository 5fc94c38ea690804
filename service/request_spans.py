"""A span around every request. Imported only where traces are asked for."""

from http import HTTPMethod

import structlog
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.spans import REQUEST_ID, TENANT_ID, Spans, log_fields

UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their spans would bury the others."""


class RequestSpans:
    """Makes a server span of each request, below the one that its `traceparent` names.

    The ids of the span are in the log lines of the request from here on, so this belongs inside
    `service.middleware.RequestContext`.
    """

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # The route is known only later, and with it the name.
        with self._spans.tracer.start_as_current_span(
            _name(scope),
            self._spans.parent_from(Headers(scope=scope)),
            SpanKind.SERVER,
            record_exception=False,  # the log has it, under the same ids
            set_status_on_exception=False,
        ) as span:
            structlog.contextvars.bind_contextvars(**log_fields(span))
            failure = None
            try:
                await self._app(scope, receive, send_noting)
            except ClientDisconnect:
                status = status or 499
                raise
            except Exception as error:
                status = status or 500  # what `RequestContext` answers
                failure = type(error).__name__
                raise
            finally:
                _describe(span, scope, status, failure)


def _describe(span: Span, scope: Scope, status: int, failure: str | None) -> None:
    span.update_name(_name(scope))
    state = scope.get("state", {})
    attributes = {
        http_attributes.HTTP_REQUEST_METHOD: _known_method(scope) or "_OTHER",
        http_attributes.HTTP_ROUTE: _route(scope),
        http_attributes.HTTP_RESPONSE_STATUS_CODE: status or None,
        url_attributes.URL_PATH: scope["path"],
        url_attributes.URL_SCHEME: scope["scheme"],
        REQUEST_ID: state.get("request_id"),
        TENANT_ID: state.get("tenant_id"),
    }
    if failure is not None or status >= 500:
        attributes[error_attributes.ERROR_TYPE] = failure or str(status)
        span.set_status(StatusCode.ERROR)
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _name(scope: Scope) -> str:
    """Verb and route: few names, whatever clients send."""
    method, route = _known_method(scope) or "HTTP", _route(scope)
    return method if route is None else f"{method} {route}"


def _route(scope: Scope) -> str | None:
    path: str | None = getattr(scope.get("route"), "path", None)
    return path


def _known_method(scope: Scope) -> str | None:
    method: str = scope["method"]
    return method if method in HTTPMethod.__members__ else None
