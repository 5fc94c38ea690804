"""Data sets: uploaded files, or references to files where they lie."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import Base, Id, Json, UtcDateTime, new_id, utc_now


class DatasetFormat(StrEnum):
    """How images and classes are laid out."""

    ZIP = "zip"
    NPZ = "npz"
    PARQUET = "parquet"
    FOLDER = "folder"
    """Only as a reference."""


class Dataset(Base):
    """Images with classes. Either `storage_key` (an upload) or `reference` (a URI) is set."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("dataset"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    format: Mapped[str] = mapped_column(String(20))
    filename: Mapped[str | None] = mapped_column(String(255))
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    storage_key: Mapped[str | None] = mapped_column(String(300), index=True)
    reference: Mapped[str | None] = mapped_column(String(2000))
    class_names: Mapped[list[str] | None] = mapped_column(Json)
    """Folder names in the order of a model's outputs; none: numbers by value, else sorted."""
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
