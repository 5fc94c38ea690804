"""What the API says about its own health."""

from typing import Literal

from pydantic import Field

from service.fields import Output


class HealthOut(Output):
    """The process answers."""

    object: Literal["health"]
    status: Literal["ok"]


class ComponentOut(Output):
    """One thing the service needs."""

    name: Literal["database", "broker", "store", "workers"]
    state: Literal["up", "down"]
    required: bool = Field(
        description="Whether the service is unready without it; jobs can wait for workers."
    )
    detail: str | None = Field(description="What is wrong; or how many workers report.")


class ReadinessOut(Output):
    """Whether the service can do its work."""

    object: Literal["readiness"]
    status: Literal["ready", "unready"]
    components: list[ComponentOut]
