"""Pages of lists: an envelope, an opaque cursor, a limit that is coerced and not refused."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"]
    data: list[Item] = Field(description="The items, newest first unless the operation says else.")
    has_more: bool = Field(description="Whether another page follows.")
    next_cursor: str | None = Field(
        description="Give it as `after` to get the next page. Null: this page is the last one."
    )


class HasId(Protocol):
    """A row with an id."""

    @property
    def id(self) -> str:
        """The id."""


Row = TypeVar("Row", bound=HasId)


def cut(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], bool, str | None]:
    """Out of up to `limit` + 1 rows: a page, whether more follow, the cursor of the next page."""
    page, more = rows[:limit], len(rows) > limit
    return page, more, encode_cursor(page[-1].id) if more else None


def coerce_limit(limit: int, maximum: int = MAX_LIMIT) -> int:
    """A page size that is too large becomes the largest one (AIP-158)."""
    return min(limit, maximum)


def encode_cursor(last: str) -> str:
    """An opaque cursor for the id of the last item of a page."""
    return urlsafe_b64encode(last.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """The id inside a cursor.

    Raises:
        ValueError: `cursor` was not made by `encode_cursor`.
    """
    last = urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode("ascii")
    if encode_cursor(last) != cursor or not last.replace("_", "").isalnum():
        raise ValueError("not a cursor of ours")
    return last
