"""What the API says about models."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from sanitizer.catalog import similar_architectures
from sanitizer.cost.profile import find_profile
from sanitizer.spec import GivenModelOptions
from service.fields import Input, Metadata, Name, Output, Time
from service.pagination import Page


class ModelFields(GivenModelOptions):
    """The fields of an upload beside its file."""

    name: Name | None = Field(default=None, description="For people. Null: the file's name.")
    metadata: Metadata = Field(default_factory=dict)

    @field_validator("architecture")
    @classmethod
    def _of_the_catalog(cls, name: str) -> str:
        if name != "auto" and find_profile(name) is None:
            near = similar_architectures(name)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"there is no architecture {name!r}; {hint}GET /v1/architectures lists them, and "
                "auto finds it from the weights"
            )
        return name

    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        default=None,
        description="SHA-256 of the file in hex; the upload is refused if its content differs.",
    )


class ModelChange(Input):
    """What is to be another; what is left out stays as it is."""

    name: Name | None = Field(default=None, description="For people. Null: the file's name.")
    architecture: str | None = Field(
        default=None,
        min_length=1,
        max_length=80,
        description="A name of the catalog. Null: `auto`, found from the weights.",
    )
    input_size: list[int] | None = Field(
        default=None,
        max_length=2,
        fail_fast=True,
        description="Height and width, pixels. Null: the architecture's own.",
    )
    mean: list[float] | None = Field(
        default=None, max_length=4, fail_fast=True, description="Null: nothing is subtracted."
    )
    std: list[float] | None = Field(
        default=None, max_length=4, fail_fast=True, description="Null: nothing is divided."
    )
    metadata: Metadata | None = Field(
        default=None, description="All of it: what is not among it is gone. Null: none."
    )


class ModelLinks(Output):
    """Where to go from a model; paths on this server."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    self_: str = Field(alias="self")
    file: str


class ModelOut(Output):
    """A file of weights with what is needed to run it."""

    object: Literal["model"]
    id: str = Field(description="`model_...`; sorts by time of creation.")
    name: str
    filename: str
    bytes: int = Field(ge=0)
    sha256: str
    architecture: str = Field(description="`auto`: found from the weights when a job runs.")
    input_size: list[int] | None = Field(
        description="Height and width, pixels. Null: the architecture's own."
    )
    mean: list[float] | None
    std: list[float] | None
    metadata: Metadata
    source_job_id: str | None = Field(
        description="The job this model came out of. Null for an upload, and once that job is "
        "deleted."
    )
    created_at: Time
    links: ModelLinks


class ModelList(Page[ModelOut]):
    """One page of models, newest first."""
