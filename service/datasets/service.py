"""Data sets: stored, referred to, listed, changed, deleted."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from sqlalchemy.orm import Session

from service.datasets import formats
from service.datasets.repository import DatasetRepository
from service.datasets.schemas import (
    DatasetChange,
    DatasetFields,
    DatasetLinks,
    DatasetOut,
    DatasetReferenceCreate,
)
from service.db.base import utc_now
from service.db.tables import Dataset, DatasetFormat
from service.errors import DatasetInUse, DatasetNotFound, FieldError, ReferenceRefused
from service.keys.repository import KeyRepository
from service.multipart import Upload
from service.storage import references


def storage_key(tenant_id: str, dataset_id: str) -> str:
    """Where the file of an uploaded data set lies."""
    return f"tenants/{tenant_id}/datasets/{dataset_id}"


def create(
    session: Session,
    tenant_id: str,
    dataset_id: str,
    upload: Upload,
    fields: DatasetFields,
    format: DatasetFormat,
) -> Dataset:
    """Makes the row of an uploaded data set."""
    dataset = Dataset(
        id=dataset_id,
        tenant_id=tenant_id,
        name=fields.name or upload.filename,
        format=format,
        filename=upload.filename,
        bytes=upload.stored.bytes,
        sha256=upload.stored.sha256,
        storage_key=upload.key,
        class_names=fields.class_names,
        metadata_=dict(fields.metadata),
    )
    DatasetRepository.from_session(session).add(dataset)
    return dataset


def refer(
    session: Session, tenant_id: str, request: DatasetReferenceCreate, roots: Sequence[Path]
) -> Dataset:
    """Makes the row of a reference. The path is stored with its links followed.

    Raises:
        ReferenceRefused: It points to nothing that is open for references.
        UnknownDataFormat: What it points to is in no known format.
    """
    try:
        path = references.resolve(request.uri, roots)
    except (references.ReferenceRefused, ValueError) as error:  # ValueError: it is no URI at all
        raise ReferenceRefused(str(error), errors=[FieldError("/uri", "is refused")]) from error
    dataset = Dataset(
        tenant_id=tenant_id,
        name=request.name or path.name[:200],
        format=formats.sniff_path(path),
        reference=path.as_uri(),
        class_names=request.class_names,
        metadata_=dict(request.metadata),
    )
    DatasetRepository.from_session(session).add(dataset)
    return dataset


def get(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """A data set of the tenant.

    Raises:
        DatasetNotFound: There is none, or it is somebody else's.
    """
    dataset = DatasetRepository.from_session(session).get(tenant_id, dataset_id)
    if dataset is None:
        raise DatasetNotFound(dataset_id)
    return dataset


def change(session: Session, tenant_id: str, dataset_id: str, wanted: DatasetChange) -> Dataset:
    """Changes what is said about a data set; the images stay as they are.

    Raises:
        DatasetInUse: The order of its classes would change under a job that has not ended.
        DatasetNotFound: There is none, or it is somebody else's.
    """
    KeyRepository.from_session(session).lock_tenant(tenant_id)  # no job may be submitted meanwhile
    dataset = get(session, tenant_id, dataset_id)
    given = wanted.model_fields_set
    if "class_names" in given and wanted.class_names != dataset.class_names:
        jobs = DatasetRepository.from_session(session).unfinished_jobs(dataset.id)
        if jobs:
            raise DatasetInUse(dataset.id, jobs)
        dataset.class_names = wanted.class_names
    if "name" in given:
        dataset.name = wanted.name or _own_name(dataset)
    if "metadata" in given:
        dataset.metadata_ = dict(wanted.metadata or {})
    session.flush()
    return dataset


def _own_name(dataset: Dataset) -> str:
    """What an unnamed one is called."""
    return dataset.filename or unquote(PurePosixPath(dataset.reference or "").name)[:200]


def delete(session: Session, tenant_id: str, dataset_id: str) -> str | None:
    """Marks a data set as deleted; its file can go once that is committed.

    Returns:
        The key of its file; none for a reference.

    Raises:
        DatasetInUse: A job that has not ended needs it.
        DatasetNotFound: There is none, or it is somebody else's.
    """
    KeyRepository.from_session(session).lock_tenant(tenant_id)  # no job may be submitted meanwhile
    dataset = get(session, tenant_id, dataset_id)
    jobs = DatasetRepository.from_session(session).unfinished_jobs(dataset.id)
    if jobs:
        raise DatasetInUse(dataset.id, jobs)
    dataset.deleted_at = utc_now()
    return dataset.storage_key


def to_out(dataset: Dataset) -> DatasetOut:
    """What clients see."""
    return DatasetOut(
        object="dataset",
        id=dataset.id,
        name=dataset.name,
        format=DatasetFormat(dataset.format),
        filename=dataset.filename,
        bytes=dataset.bytes,
        sha256=dataset.sha256,
        reference=dataset.reference,
        class_names=dataset.class_names,
        metadata=dataset.metadata_,
        created_at=dataset.created_at,
        links=DatasetLinks(self_=f"/v1/datasets/{dataset.id}"),
    )
