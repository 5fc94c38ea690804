"""Explanations of problems: what the `type` of a problem document leads to."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from fastapi.responses import PlainTextResponse

from service import errors, problems
from service.fields import Output
from service.pagination import Page

router = APIRouter(prefix="/problems", tags=["problems"])


class ProblemKind(Output):
    """A kind of problem."""

    object: Literal["problem"]
    type: str
    code: str
    title: str
    status: int
    explanation: str


class ProblemKindList(Page[ProblemKind]):
    """All kinds of problem."""


@router.get("", operation_id="list_problems", summary="List kinds of problem")
def list_all() -> ProblemKindList:
    """Every kind of problem that the service answers with."""
    kinds = [
        ProblemKind(
            object="problem",
            type=problems.type_of(code),
            code=code,
            title=kind.title,
            status=int(kind.status),
            explanation=kind.explanation,
        )
        for code, kind in errors.kinds().items()
    ]
    return ProblemKindList(object="list", data=kinds, has_more=False, next_cursor=None)


@router.get(
    "/{slug}",
    operation_id="get_problem",
    summary="Explain a kind of problem",
    response_class=PlainTextResponse,
    responses=problems.responses(errors.ProblemNotFound),
)
def get(
    slug: Annotated[str, Path(description="The last segment of a problem's `type`.")],
) -> str:
    """What the problem means and what to do."""
    kind = errors.kinds().get(slug.replace("-", "_"))
    if kind is None:
        raise errors.ProblemNotFound(slug)
    return f"{kind.title}\n\nHTTP {int(kind.status)}, code {kind.code}\n\n{kind.explanation}\n"
