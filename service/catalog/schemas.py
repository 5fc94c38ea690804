"""What the API says about what a job can name."""

from typing import Any, Literal

from pydantic import Field

from service.fields import Output
from service.pagination import Page


class MethodOut(Output):
    """A way to sanitize."""

    object: Literal["method"]
    name: str
    description: str
    presets: list[str]
    defaults: dict[str, Any] = Field(
        description="Settings that a request may leave out, beside the `name`, which it may not."
    )
    json_schema: dict[str, Any] = Field(description="JSON Schema (2020-12) of the settings.")


class AttackOut(Output):
    """A kind of trigger that a probe can describe."""

    object: Literal["attack"]
    name: str = Field(description="The `kind` of the probe.")
    description: str
    defaults: dict[str, Any] = Field(
        description="Settings that a request may leave out, beside the `kind`, which it may not."
    )
    json_schema: dict[str, Any] = Field(description="JSON Schema (2020-12) of the settings.")


class ArchitectureOut(Output):
    """An architecture, or a family of them with numbers in the name."""

    object: Literal["architecture"]
    name: str
    family: str
    description: str
    input_size: list[int] = Field(description="Height and width it was made for, pixels.")


class MethodList(Page[MethodOut]):
    """All methods."""


class AttackList(Page[AttackOut]):
    """All kinds of trigger."""


class ArchitectureList(Page[ArchitectureOut]):
    """All architectures."""
