"""What the API says about data sets."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.db.tables import DatasetFormat
from service.fields import ClassNames, Input, Metadata, Name, Output, PlainText, Time
from service.pagination import Page


class DatasetFields(Input):
    """The fields of an upload beside its file."""

    name: Name | None = Field(default=None, description="For people. Null: the file's name.")
    class_names: ClassNames | None = None
    metadata: Metadata = Field(default_factory=dict)
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        default=None,
        description="SHA-256 of the file in hex; the upload is refused if its content differs.",
    )


class DatasetReferenceCreate(Input):
    """Images where they lie: nothing is copied."""

    uri: Annotated[PlainText, Field(min_length=1, max_length=2000)] = Field(
        description="`file:///folder/or/file` inside a folder the operator has opened for it.",
        examples=["file:///srv/data/cifar10/train.parquet"],
    )
    name: Name | None = Field(default=None, description="For people. Null: the last path segment.")
    class_names: ClassNames | None = None
    metadata: Metadata = Field(default_factory=dict)


class DatasetChange(Input):
    """What is to be another; what is left out stays as it is."""

    name: Name | None = Field(
        default=None, description="For people. Null: the file's name, or the last path segment."
    )
    class_names: ClassNames | None = None
    metadata: Metadata | None = Field(
        default=None, description="All of it: what is not among it is gone. Null: none."
    )


class DatasetLinks(Output):
    """Where to go from a data set; paths on this server."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    self_: str = Field(alias="self")


class DatasetOut(Output):
    """Images with classes: an upload, or a reference."""

    object: Literal["dataset"]
    id: str = Field(description="`dataset_...`; sorts by time of creation.")
    name: str
    format: DatasetFormat
    filename: str | None = Field(description="Null for a reference.")
    bytes: int | None = Field(ge=0, description="Null for a reference.")
    sha256: str | None = Field(description="Null for a reference.")
    reference: str | None = Field(description="Null for an upload.")
    class_names: list[str] | None
    metadata: Metadata
    created_at: Time
    links: DatasetLinks


class DatasetList(Page[DatasetOut]):
    """One page of data sets, newest first."""
