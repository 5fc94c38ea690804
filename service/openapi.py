"""The OpenAPI document: `python -m service.openapi` prints it."""

import json
import sys
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service import errors, problems
from service.idempotency import REPLAYED_HEADER
from service.problems import Problem

TITLE = "Backdoor sanitizer"
VERSION = "1.0.0"
DESCRIPTION = """\
Takes in an image classifier that nobody can vouch for and gives it back without its backdoor.

1. `POST /v1/models`: upload the suspect model.
2. `POST /v1/datasets`: upload a small set of clean images, or refer to one.
3. `POST /v1/jobs`: sanitize the model. The answer comes at once; follow the job by `GET`, or live
at `/events`.
4. `GET /v1/models/{result_model_id}/file`: download the sanitized model, in the format it came in.

Every error is a problem document (RFC 9457) with a stable `code`, which `GET /problems` explains;
those that a job fails by or warns of are listed in `JobError` and `JobWarning`. Every POST that
creates takes an `Idempotency-Key`. Every answer has an `X-Request-ID`, the client's own if it sent
one: the operator finds the request by it. Lists are pages with a cursor. Times are RFC 3339 in UTC;
shares are numbers from 0 to 1.
"""
TAGS = [
    {"name": "models", "description": "Files of weights: suspect ones, and sanitized ones."},
    {"name": "datasets", "description": "Clean images with their classes."},
    {"name": "jobs", "description": "Runs of a method over a model."},
    {"name": "catalog", "description": "What a job can name."},
    {"name": "keys", "description": "API keys of your tenant."},
    {"name": "health", "description": "For operators and their tools; no key needed."},
    {"name": "problems", "description": "Explanations of errors; no key needed."},
]

AUTH_ERRORS = (errors.Unauthenticated, errors.Forbidden)
COMMON_ERRORS = (errors.InvalidRequest, errors.Unavailable, errors.ServiceError)
BODY_ERRORS = (errors.BadRequest, errors.ContentTooLarge, errors.UnsupportedMediaType)
CREATE_ERRORS = (
    errors.IdempotencyKeyReused,
    errors.IdempotentRequestRunning,
)
UPLOAD_ERRORS = (
    *CREATE_ERRORS,
    errors.ChecksumMismatch,
    errors.EmptyFile,
)


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


CREATED: dict[str, Any] = {
    "headers": {
        "Location": _header("Path of the new resource."),
        REPLAYED_HEADER: _header(
            "`true`: this is the answer that an earlier request with the `Idempotency-Key` got."
        ),
    }
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILE_HEADERS = {
    "ETag": _header("SHA-256 of the whole file, in quotation marks."),
    "Accept-Ranges": _header("One range of bytes may be asked for.", enum=["bytes"]),
    "Content-Disposition": _header("`attachment`, with the name of the file."),
}
_CONTENT_RANGE = _header("First and last byte of the part, and the size of the file.")
FILE_REQUEST: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": description,
            "schema": {"type": "string"},
        }
        for name, description in (
            ("Range", "One range of bytes, as `bytes=1000-`: for the rest of a broken download."),
            ("If-Range", "An `ETag`: `Range` counts only if the file is still that one."),
            ("If-None-Match", "An `ETag`: 304 without the file if it is still that one."),
        )
    ]
}
"""What a download may ask for beside its path."""


def file_responses(
    description: str = "The file.", *, any_type: bool = False
) -> dict[int, dict[str, Any]]:
    """What a download answers; `any_type`: the media type is the file's own."""
    content = {"application/octet-stream": _BINARY, **({"*/*": _BINARY} if any_type else {})}
    return {
        200: {"description": description, "headers": _FILE_HEADERS, "content": content},
        206: {
            "description": "The part that `Range` asked for.",
            "headers": {**_FILE_HEADERS, "Content-Range": _CONTENT_RANGE},
            "content": content,
        },
        304: {
            "description": "The file is the one that `If-None-Match` names.",
            "headers": _FILE_HEADERS,
        },
        307: _ELSEWHERE,
    }


_ELSEWHERE: dict[str, Any] = {
    "description": "The store itself gives the file, at an address that is good for a short "
    "time and needs no key: do not send it one. Only where the operator has set "
    "`presigned_seconds`; a request with `If-Range` is never redirected.",
    "headers": {"Location": _header("A signed address of the file.", format="uri")},
}


def install(app: FastAPI) -> None:
    """Makes `app.openapi()` give the document of this module."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=TITLE,
        version=VERSION,
        summary="Removes backdoors from image classifiers.",
        description=DESCRIPTION,
        tags=TAGS,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    schemas = document["components"]["schemas"]
    _, problem = models_json_schema(
        [(Problem, "validation")], ref_template="#/components/schemas/{model}"
    )
    schemas.update(problem["$defs"])
    for path in document["paths"].values():
        for operation in path.values():
            _declare_common_errors(operation)
            _name_upload(operation, schemas)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's 422, which nobody gets
        schemas.pop(name, None)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _declare_common_errors(operation: dict[str, Any]) -> None:
    secured = "security" in operation
    has_body = "requestBody" in operation
    common = problems.responses(
        *COMMON_ERRORS, *(AUTH_ERRORS if secured else ()), *(BODY_ERRORS if has_body else ())
    )
    declared = operation["responses"]
    if "#/components/schemas/HTTPValidationError" in json.dumps(declared.get("422", {})):
        del declared["422"]
    for status, response in common.items():
        own = declared.setdefault(str(status), response)
        if problems.MEDIA_TYPE in own.get("content", {}) and own is not response:
            own["description"] = f"{response['description']}; {own['description']}"
    operation["responses"] = dict(sorted(declared.items()))


def _name_upload(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Moves the schema of an upload's form to the others, where generators take its name from."""
    content = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
    if content is not None:
        name = content["schema"]["title"]
        schemas[name] = content["schema"]
        content["schema"] = {"$ref": f"#/components/schemas/{name}"}


def render(document: dict[str, Any]) -> str:
    """The document as text that changes only where the contract does."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Prints the document."""
    # Here, because the routes of the app import this module.
    from service.app import create_app
    from service.settings import Settings

    with TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, storage_url=f"file:{folder}")
        sys.stdout.write(render(create_app(settings).openapi()))


if __name__ == "__main__":
    main()
