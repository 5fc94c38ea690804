"""Field types that the schemas of several nouns share."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer


class Input(BaseModel):
    """What clients send: unknown fields are refused, and so are NaN and the infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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

Metadata = Annotated[
    dict[
        Annotated[PlainText, Field(min_length=1, max_length=64)],
        Annotated[PlainText, Field(max_length=512)],
    ],
    Field(
        max_length=16,
        description="Up to 16 pairs of your own: keys of up to 64, values of up to 512 characters.",
        examples=[{"team": "vision", "ticket": "SEC-114"}],
    ),
]

ClassNames = Annotated[
    list[Annotated[PlainText, Field(min_length=1, max_length=200)]],
    Field(
        min_length=2,
        max_length=10_000,
        description="Folder names of the classes in the order of the model's outputs. Null: "
        "numbers by value, other names sorted.",
    ),
]


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[AwareDatetime, PlainSerializer(_rfc3339, when_used="json")]
"""RFC 3339, UTC, milliseconds."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 in lower-case hex.")]
