"""What the API says about keys."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from service.db.tables import Scope
from service.fields import Input, Output, PlainText, Time
from service.pagination import Page


class KeyCreate(Input):
    """A key to make."""

    name: Annotated[PlainText, Field(min_length=1, max_length=100)] = Field(
        description="What the key is for.", examples=["nightly pipeline"]
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3, fail_fast=True)] = Field(
        default=[Scope.READ, Scope.WRITE],
        description="`write` includes `read`; `admin` includes both. None that your own key lacks.",
    )
    expires_at: AwareDatetime | None = Field(
        default=None,
        description="When the key stops working; in the future. Null: never.",
    )


class KeyOut(Output):
    """A key, without its secret."""

    object: Literal["api_key"]
    id: str = Field(description="`key_...`.")
    name: str
    prefix: str = Field(description="The first characters of the secret, to recognise it by.")
    scopes: list[Scope]
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None = Field(description="To the minute.")
    revoked_at: Time | None


class KeyCreated(KeyOut):
    """A new key with its secret, which is shown this once."""

    secret: str = Field(description="Send it as `Authorization: Bearer <secret>`.")


class KeyList(Page[KeyOut]):
    """One page of keys, newest first."""
