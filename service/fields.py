"""Field types that the schemas of several nouns share."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
)

from sanitizer.spec import Strict


class Input(Strict):
    """What clients send: unknown fields are refused, and so are NaN and the infinities."""


class Output(BaseModel):
    """What clients get: every field is always there, so none has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _without_nul(text: str) -> str:
    # PostgreSQL stores no NUL in text.
    if "\x00" in text:
        raise ValueError("text must not contain the NUL character")
    return text


def _id_without_nul(given: str) -> str:
    return given.replace("\x00", "\ufffd")


no_nul_in_id = AfterValidator(_id_without_nul)
"""For ids in paths: one with a NUL names nothing, and PostgreSQL must not be asked for it."""

PlainText = Annotated[str, AfterValidator(_without_nul)]

Name = Annotated[
    PlainText,
    Field(min_length=1, max_length=200, description="For people; need not be unique."),
]

MAX_PAIRS = 16


def _few_pairs(given: Any) -> Any:
    # Before each pair is looked at: every one that is wrong is an error of its own.
    if isinstance(given, Mapping) and len(given) > MAX_PAIRS:
        raise ValueError(f"at most {MAX_PAIRS} pairs are expected, got {len(given)}")
    return given


Metadata = Annotated[
    dict[
        Annotated[PlainText, Field(min_length=1, max_length=64)],
        Annotated[PlainText, Field(max_length=512)],
    ],
    BeforeValidator(_few_pairs),
    Field(
        max_length=MAX_PAIRS,
        description="Up to 16 pairs of your own: keys of up to 64, values of up to 512 characters.",
        examples=[{"team": "vision", "ticket": "SEC-114"}],
    ),
]


def _each_once(names: list[str]) -> list[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"every class has a name of its own, {name!r} came twice")
        seen.add(name)
    return names


ClassNames = Annotated[
    list[Annotated[PlainText, Field(min_length=1, max_length=200)]],
    Field(
        min_length=2,
        max_length=10_000,
        description="Folder names of the classes in the order of the model's outputs. Null: "
        "numbers by value, other names sorted.",
        fail_fast=True,
    ),
    AfterValidator(_each_once),
]


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[AwareDatetime, PlainSerializer(_rfc3339, when_used="json")]
"""RFC 3339, UTC, milliseconds."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 in lower-case hex.")]
