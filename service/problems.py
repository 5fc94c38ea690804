"""Errors as RFC 9457 problem details: documents, handlers, and what OpenAPI says of them."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match

from sanitizer.faults import in_words
from service import errors
from service.db.repository import DATABASE_AWAY
from service.errors import FieldError, ServiceError
from service.storage import StorageError

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 100
"""Places at fault that an answer lists."""

log = structlog.get_logger(__name__)


class ProblemField(BaseModel):
    """One place of the request that is at fault."""

    pointer: str = Field(
        description="JSON pointer (RFC 6901) into the body; other parts of the request start with "
        "`/query`, `/path` or `/header`.",
        examples=["/clean_data/dataset_id"],
    )
    detail: str


class Problem(BaseModel):
    """What went wrong (RFC 9457); further members depend on `code`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="Stable name of the kind of problem, and the path of its explanation.",
        examples=["/problems/model-not-found"],
    )
    title: str
    status: int = Field(description="The HTTP status again.", examples=[404])
    detail: str = Field(description="What came, what was expected, what to do.")
    instance: str = Field(description="The path that was asked for.")
    code: str = Field(
        description="Stable name of the kind of problem, for programs. Later versions may add "
        "some: take one that you do not know by its `status`. `GET /problems` explains them.",
        examples=["model_not_found"],
        json_schema_extra={"x-extensible-enum": [*errors.kinds()]},
    )
    request_id: str = Field(description="Finds the request in the operator's log.")
    errors: list[ProblemField] = Field(description="Places at fault, the first 100; may be empty.")


class BodyTooLarge(HTTPException):
    """More came than the limit, without being announced.

    An `HTTPException`, because FastAPI turns any other exception met while it reads a body into a
    400.
    """

    def __init__(self, limit: int) -> None:
        self.problem = errors.ContentTooLarge(limit, None)
        super().__init__(int(self.problem.status), self.problem.detail)


# --- Making them ---------------------------------------------------------------------------------


def response(
    error: ServiceError, *, path: str, request_id: str, status: int | None = None
) -> JSONResponse:
    """The answer for an error."""
    number = int(error.status) if status is None else status
    document = {
        **error.extensions,
        "type": type_of(error.code),
        "title": error.title,
        "status": number,
        "detail": error.detail,
        "instance": path,
        "code": error.code,
        "request_id": request_id,
        "errors": [{"pointer": e.pointer, "detail": e.detail} for e in error.errors],
    }
    return JSONResponse(document, number, dict(error.headers), media_type=MEDIA_TYPE)


def type_of(code: str) -> str:
    """The `type` of a kind of problem: a path of this service that explains it."""
    return f"/problems/{code.replace('_', '-')}"


def install(app: FastAPI) -> None:
    """Makes errors of the app problem documents; unforeseen ones are `service.middleware`'s."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    for away in DATABASE_AWAY:
        app.add_exception_handler(away, _on_database_error)
    app.add_exception_handler(StorageError, _on_store_error)


def _answer(request: Request, error: ServiceError, status: int | None = None) -> JSONResponse:
    return response(
        error,
        path=request.url.path,
        request_id=getattr(request.state, "request_id", ""),
        status=status,
    )


async def _on_service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)  # what it is registered for
    return _answer(request, error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error.body, bytes) and not _is_json(media_type):
        return _answer(
            request,
            errors.UnsupportedMediaType(
                f"The body must be application/json, not {media_type or 'untyped'}: send the "
                "header Content-Type."
            ),
        )
    fields = field_errors(error.errors(), error.body)
    return _answer(request, errors.InvalidRequest(_summary(fields), errors=fields[:MOST_ERRORS]))


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    made: ServiceError
    if isinstance(error, BodyTooLarge):
        return _answer(request, error.problem)
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            made = errors.NotFound(f"The API has no path {path}.")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            made = errors.MethodNotAllowed(f"{path} has no method {method}.")
            # Starlette's names those of one route alone; here each method is a route of its own.
            made.headers["Allow"] = ", ".join(_methods_of(request))
            return _answer(request, made)
        case HTTPStatus.BAD_REQUEST:
            made = errors.BadRequest(_unreadable(error))
        case _:
            made = errors.HttpError(str(error.detail))
    made.headers.update(error.headers or {})
    return _answer(request, made, error.status_code)


def _methods_of(request: Request) -> list[str]:
    routes = request.app.routes
    return [
        method.value
        for method in HTTPMethod
        if any(
            route.matches({**request.scope, "method": method.value})[0] is Match.FULL
            for route in routes
        )
    ]


def _unreadable(error: HTTPException) -> str:
    # FastAPI says only that the body could not be parsed.
    match error.__cause__:
        case UnicodeDecodeError(object=body, start=place):
            return f"The body is no UTF-8: byte {place} of it is 0x{body[place]:02x}."
        case RecursionError():
            return "The body has lists or objects within each other, deeper than can be read."
        case _:
            return str(error.detail)


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    log.error("database does not answer", exc_info=error)
    return _answer(request, errors.Unavailable("The database does not answer."))


async def _on_store_error(request: Request, error: Exception) -> JSONResponse:
    log.error("store does not answer", exc_info=error)
    return _answer(request, errors.Unavailable("The store does not answer."))


# --- Places at fault -----------------------------------------------------------------------------


def field_errors(details: Sequence[Any], body: Any) -> list[FieldError]:
    """Pydantic's errors as JSON pointers.

    Pydantic puts the name of a union's member into the path, which is no part of the document; so
    the path is walked along `body`, and steps that lead nowhere are left out.
    """
    placed = [(_pointer(detail, body), detail) for detail in details]
    around = _around([pointer for pointer, _ in placed])
    found = {
        FieldError(pointer, _sentence(detail)): None
        for pointer, detail in placed
        # A list whose items are wrong is also called too short: it is counted without them.
        if not (detail["type"] == "too_short" and pointer in around)
    }
    return list(found)


def _around(pointers: Sequence[str]) -> set[str]:
    """Every place that one of these lies in."""
    found: set[str] = set()
    for pointer in pointers:
        while (pointer := pointer.rpartition("/")[0]) and pointer not in found:
            found.add(pointer)
    return found


def from_validation(error: ValidationError, body: Any) -> errors.InvalidRequest:
    """The problem for a body that was validated by hand."""
    details = [{**detail, "loc": ("body", *detail["loc"])} for detail in error.errors()]
    fields = field_errors(details, body)
    return errors.InvalidRequest(_summary(fields), errors=fields[:MOST_ERRORS])


def _pointer(detail: ErrorDetails, body: Any) -> str:
    place, *steps = detail["loc"] or ("body",)
    if detail["type"] == "json_invalid":
        return ""
    if place != "body":
        return "".join(f"/{_escape(step)}" for step in (place, *steps))
    kept: list[int | str] = []
    node = body
    for index, step in enumerate(steps):
        child = _child(node, step)
        if child is not _NOTHING:
            node = child
            kept.append(step)
        elif detail["type"] == "missing" and index == len(steps) - 1:
            kept.append(step)
    return "".join(f"/{_escape(step)}" for step in kept)


_NOTHING = object()


def _child(node: Any, step: int | str) -> Any:
    if isinstance(node, Mapping):
        return node.get(step, _NOTHING)
    if isinstance(node, list) and isinstance(step, int) and step < len(node):
        return node[step]
    return _NOTHING


def _escape(step: int | str) -> str:
    text = str(step).encode("utf-8", "backslashreplace").decode()
    return text.replace("~", "~0").replace("/", "~1")


def _sentence(detail: ErrorDetails) -> str:
    if detail["type"] == "json_invalid":
        return f"not JSON: {detail['ctx']['error']} at character {detail['loc'][-1]}"
    if detail["type"] in _SAY_WHAT_CAME:
        return in_words(detail)
    return in_words(detail) + _got(detail.get("input"))


_SAY_WHAT_CAME = ("value_error", "assertion_error", "missing", "extra_forbidden", "too_long")
"""Kinds of pydantic's errors that name what came, or of which it is of no use."""
MOST_SHOWN = 60
"""Characters of what came."""


def _got(given: Any) -> str:
    if not isinstance(given, str | int | float | bool | None):
        return ""
    if isinstance(given, str) and len(given) > MOST_SHOWN:
        return f", got {len(given)} characters"
    # Half a surrogate pair may come as JSON, and may not leave as UTF-8.
    shown = json.dumps(given, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return f", got {shown}"


def _summary(fields: Sequence[FieldError]) -> str:
    first = fields[0]
    where = first.pointer or "the body"
    more = f" (and {len(fields) - 1} more, see `errors`)" if len(fields) > 1 else ""
    return f"{where}: {first.detail}{more}."


# --- In the OpenAPI document ---------------------------------------------------------------------


def responses(
    *kinds: type[ServiceError], also: Mapping[int, Mapping[str, Any]] | None = None
) -> dict[int | str, dict[str, Any]]:
    """What a route declares: the errors it answers with, and `also` its other answers."""
    by_status: dict[int, list[type[ServiceError]]] = defaultdict(list)
    for kind in kinds:
        by_status[int(kind.status)].append(kind)
    declared: dict[int | str, dict[str, Any]] = {}
    for status, group in sorted(by_status.items()):
        declared[status] = {
            "description": "; ".join(f"{kind.title} (`{kind.code}`)" for kind in group),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        headers = {
            name: {"description": description, "schema": {"type": "string"}}
            for kind in group
            for name, description in kind.always_with.items()
        }
        if headers:
            declared[status]["headers"] = headers
    return declared | {status: dict(answer) for status, answer in (also or {}).items()}
