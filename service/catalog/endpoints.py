"""What a job can name, over HTTP."""

from fastapi import APIRouter

from sanitizer.catalog import ARCHITECTURES, ATTACKS, METHODS
from service.catalog.schemas import (
    ArchitectureList,
    ArchitectureOut,
    AttackList,
    AttackOut,
    MethodList,
    MethodOut,
)
from service.dependencies import KeyedRoute, Reader

router = APIRouter(prefix="/v1", tags=["catalog"], route_class=KeyedRoute)


@router.get("/methods", operation_id="list_methods", summary="List methods")
def methods(caller: Reader) -> MethodList:  # noqa: ARG001  # a key is needed, its tenant is not
    """The ways to sanitize, with the JSON schema and the defaults of their settings."""
    return MethodList(
        object="list",
        data=[
            MethodOut(
                object="method",
                name=entry.name,
                description=entry.description,
                presets=list(entry.presets),
                defaults=entry.defaults(),
                json_schema=entry.json_schema(),
            )
            for entry in METHODS
        ],
        has_more=False,
        next_cursor=None,
    )


@router.get("/architectures", operation_id="list_architectures", summary="List architectures")
def architectures(caller: Reader) -> ArchitectureList:  # noqa: ARG001
    """The networks that weights can be of. `auto` finds the right one from the weights."""
    return ArchitectureList(
        object="list",
        data=[
            ArchitectureOut(
                object="architecture",
                name=entry.name,
                family=entry.family,
                description=entry.description,
                input_size=list(entry.input_size),
            )
            for entry in ARCHITECTURES
        ],
        has_more=False,
        next_cursor=None,
    )


@router.get("/attacks", operation_id="list_attacks", summary="List kinds of trigger")
def attacks(caller: Reader) -> AttackList:  # noqa: ARG001
    """The kinds of trigger that a probe can describe, with the JSON schema of their settings."""
    return AttackList(
        object="list",
        data=[
            AttackOut(
                object="attack",
                name=entry.name,
                description=entry.description,
                defaults=entry.defaults(),
                json_schema=entry.json_schema(),
            )
            for entry in ATTACKS
        ],
        has_more=False,
        next_cursor=None,
    )
