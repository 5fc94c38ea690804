"""The declarative base, column types and ids that every table shares."""

import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, DateTime, MetaData, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC. SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"expected a datetime with a time zone, got {value!r}")
        try:
            return value.astimezone(UTC)
        except OverflowError:  # before the first moment in UTC, or after the last one
            end = datetime.min if value.year == datetime.min.year else datetime.max
            return end.replace(tzinfo=UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


Json: TypeEngine[Any] = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""JSON, as JSONB on PostgreSQL."""

Id = String(48)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    """Base of all tables; constraints get names, so that migrations can address them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def utc_now() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def first_id(prefix: str, moment: datetime, later: timedelta = timedelta(0)) -> str:
    """Not above any id that `new_id` gives from a moment on, and above all from before it.

    Args:
        prefix: As of `new_id`.
        moment: Any; the first ids of all are of 1970.
        later: Added to it, also where the sum is no `datetime` any more.
    """
    milliseconds = (moment - _EPOCH + later) // timedelta(milliseconds=1)
    return f"{prefix}_{max(0, milliseconds) << 80:032x}"


def new_id(prefix: str) -> str:
    """A typed id that sorts by its time: prefix, underscore, 32 hex digits (UUIDv7, RFC 9562)."""
    milliseconds = time.time_ns() // 1_000_000
    rest = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | rest
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # RFC variant
    return f"{prefix}_{uuid.UUID(int=value).hex}"
