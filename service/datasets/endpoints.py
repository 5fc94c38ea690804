"""Data sets over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from service import errors, multipart, outbox, problems
from service.datasets import formats
from service.datasets import service as datasets
from service.datasets.repository import DatasetRepository
from service.datasets.schemas import (
    DatasetChange,
    DatasetFields,
    DatasetList,
    DatasetOut,
    DatasetReferenceCreate,
)
from service.db.base import new_id
from service.dependencies import (
    KeyedRoute,
    Paging,
    Reader,
    ReadSession,
    ServicesDep,
    Writer,
    WriteSession,
)
from service.fields import no_nul_in_id
from service.idempotency import Answer, OnceDep, fingerprint, run_upload
from service.multipart import Upload
from service.openapi import CREATE_ERRORS, CREATED, UPLOAD_ERRORS
from service.pagination import cut

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=KeyedRoute)

DatasetId = Annotated[str, no_nul_in_id, Path(description="Id of a data set, `dataset_...`.")]


@router.post(
    "",
    operation_id="create_dataset",
    summary="Upload a data set",
    status_code=201,
    response_model=DatasetOut,
    responses=problems.responses(*UPLOAD_ERRORS, errors.UnknownDataFormat, also={201: CREATED}),
    openapi_extra={
        "requestBody": multipart.request_body(
            DatasetFields,
            "A zip of class folders, an npz of uint8 images and labels, or a parquet file with "
            "embedded images and labels.",
        )
    },
)
async def create(
    request: Request, services: ServicesDep, caller: Writer, once: OnceDep
) -> JSONResponse:
    """Stores an archive of clean images, streamed, with its SHA-256.

    The format is told by the content, not by the name. `class_names` may come as repeated parts, as
    JSON or with commas between; `metadata` comes as JSON.
    """
    dataset_id = new_id("dataset")

    def store_row(session: Session, upload: Upload) -> Answer:
        fields = upload.validated(DatasetFields)
        format = formats.sniff(upload.head, upload.filename)
        row = datasets.create(session, caller.tenant_id, dataset_id, upload, fields, format)
        out = datasets.to_out(row)
        return Answer(201, out, {"Location": out.links.self_})

    return await run_upload(
        once,
        request,
        services,
        key=datasets.storage_key(caller.tenant_id, dataset_id),
        limit=services.settings.max_dataset_bytes,
        fields=DatasetFields,
        work=store_row,
        look=formats.sniff,
    )


@router.post(
    "/references",
    operation_id="create_dataset_reference",
    summary="Refer to a data set",
    status_code=201,
    response_model=DatasetOut,
    responses=problems.responses(
        *CREATE_ERRORS,
        errors.ReferenceRefused,
        errors.UnknownDataFormat,
        also={201: CREATED},
    ),
)
def refer(
    body: DatasetReferenceCreate,
    request: Request,
    services: ServicesDep,
    caller: Writer,
    once: OnceDep,
    session: WriteSession,
) -> JSONResponse:
    """Makes a data set of images that lie where the workers can read them; nothing is copied.

    `file://` URIs into the folders that the operator has opened for it. A folder of class folders
    is fine.
    """

    def work() -> Answer:
        roots = services.settings.reference_roots
        out = datasets.to_out(datasets.refer(session, caller.tenant_id, body, roots))
        return Answer(201, out, {"Location": out.links.self_})

    return once.run(session, fingerprint(request, body.model_dump(mode="json")), work)


@router.get("", operation_id="list_datasets", summary="List data sets")
def list_page(caller: Reader, session: ReadSession, paging: Paging) -> DatasetList:
    """Your data sets, newest first."""
    rows = DatasetRepository.from_session(session).page(
        caller.tenant_id, after=paging.after, limit=paging.limit + 1
    )
    page, more, cursor = cut(rows, paging.limit)
    return DatasetList(
        object="list", data=[datasets.to_out(d) for d in page], has_more=more, next_cursor=cursor
    )


@router.get(
    "/{dataset_id}",
    operation_id="get_dataset",
    summary="Get a data set",
    responses=problems.responses(errors.DatasetNotFound),
)
def get(dataset_id: DatasetId, caller: Reader, session: ReadSession) -> DatasetOut:
    """What is known about a data set."""
    return datasets.to_out(datasets.get(session, caller.tenant_id, dataset_id))


@router.patch(
    "/{dataset_id}",
    operation_id="update_dataset",
    summary="Change a data set",
    responses=problems.responses(
        errors.DatasetNotFound,
        errors.DatasetInUse,
        errors.UnsupportedMediaType,
    ),
)
def update(
    dataset_id: DatasetId, body: DatasetChange, caller: Writer, session: WriteSession
) -> DatasetOut:
    """Corrects the order of a data set's classes or its name, without another upload.

    Fields that are left out stay as they are. While a job that has not ended needs the data set,
    only name and metadata can be changed; finished jobs stay what they were.
    """
    return datasets.to_out(datasets.change(session, caller.tenant_id, dataset_id, body))


@router.delete(
    "/{dataset_id}",
    operation_id="delete_dataset",
    summary="Delete a data set",
    status_code=204,
    responses=problems.responses(errors.DatasetNotFound, errors.DatasetInUse),
)
def delete(dataset_id: DatasetId, caller: Writer, session: WriteSession) -> None:
    """Removes a data set and its file; what a reference points to stays as it is."""
    key = datasets.delete(session, caller.tenant_id, dataset_id)
    if key is not None:
        outbox.remove_file(session, key)
