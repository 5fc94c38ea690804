"""What a problem document has to look like."""

from typing import Any

import httpx


def problem(
    code: str,
    status: int,
    *,
    instance: str,
    detail: str,
    title: str,
    errors: list[dict[str, str]] | None = None,
    **extensions: Any,
) -> dict[str, Any]:
    """The whole body that is expected, but for the request's id."""
    return {
        "type": f"/problems/{code.replace('_', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "errors": errors or [],
        **extensions,
    }


def read_problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document in an answer, checked against its head, without the request's id."""
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    assert body.pop("request_id") == response.headers["x-request-id"]
    return body


def code_and_pointers(response: httpx.Response) -> tuple[int, str, list[str]]:
    """Status, code and the places at fault."""
    body = read_problem(response)
    return response.status_code, body["code"], [error["pointer"] for error in body["errors"]]
