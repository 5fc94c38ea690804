"""Models over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import errors, multipart, outbox, problems
from service.db.base import new_id
from service.db.session import transaction
from service.dependencies import (
    KeyedRoute,
    Paging,
    Reader,
    ReadSession,
    ServicesDep,
    Writer,
    WriteSession,
)
from service.downloads import file_response
from service.fields import no_nul_in_id
from service.idempotency import Answer, OnceDep, run_upload
from service.models import formats
from service.models import service as models
from service.models.repository import ModelRepository
from service.models.schemas import ModelChange, ModelFields, ModelList, ModelOut
from service.multipart import Upload
from service.openapi import CREATED, FILE_REQUEST, UPLOAD_ERRORS, file_responses
from service.pagination import cut

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=KeyedRoute)

ModelId = Annotated[str, no_nul_in_id, Path(description="Id of a model, `model_...`.")]


@router.post(
    "",
    operation_id="create_model",
    summary="Upload a model",
    status_code=201,
    response_model=ModelOut,
    responses=problems.responses(*UPLOAD_ERRORS, errors.UnknownModelFormat, also={201: CREATED}),
    openapi_extra={
        "requestBody": multipart.request_body(
            ModelFields, "The weights: safetensors, or a PyTorch file of tensors alone."
        )
    },
)
async def create(
    request: Request, services: ServicesDep, caller: Writer, once: OnceDep
) -> JSONResponse:
    """Stores a file of weights, streamed, with its SHA-256.

    What is surely no checkpoint by its first bytes, or by the names in an archive, is refused. More
    is not read here: what is in the file is found out, safely, by the first job that uses it.
    Lists (`input_size`, `mean`, `std`) may come as repeated parts, as JSON or with commas between;
    `metadata` comes as JSON.
    """
    model_id = new_id("model")

    def store_row(session: Session, upload: Upload) -> Answer:
        formats.look_into_archive(upload)
        fields = upload.validated(ModelFields)
        out = models.to_out(models.create(session, caller.tenant_id, model_id, upload, fields))
        return Answer(201, out, {"Location": out.links.self_})

    return await run_upload(
        once,
        request,
        services,
        key=models.storage_key(caller.tenant_id, model_id),
        limit=services.settings.max_model_bytes,
        fields=ModelFields,
        work=store_row,
        look=formats.look,
    )


@router.get("", operation_id="list_models", summary="List models")
def list_page(caller: Reader, session: ReadSession, paging: Paging) -> ModelList:
    """Your models, uploaded and sanitized, newest first."""
    rows = ModelRepository.from_session(session).page(
        caller.tenant_id, after=paging.after, limit=paging.limit + 1
    )
    page, more, cursor = cut(rows, paging.limit)
    return ModelList(
        object="list", data=[models.to_out(m) for m in page], has_more=more, next_cursor=cursor
    )


@router.get(
    "/{model_id}",
    operation_id="get_model",
    summary="Get a model",
    responses=problems.responses(errors.ModelNotFound),
)
def get(model_id: ModelId, caller: Reader, session: ReadSession) -> ModelOut:
    """What is known about a model."""
    return models.to_out(models.get(session, caller.tenant_id, model_id))


@router.get(
    "/{model_id}/file",
    operation_id="download_model",
    summary="Download a model",
    response_class=Response,
    responses=problems.responses(
        errors.ModelNotFound,
        errors.FileGone,
        errors.RangeNotSatisfiable,
        also=file_responses(),
    ),
    openapi_extra=FILE_REQUEST,
)
async def download(
    model_id: ModelId, request: Request, caller: Reader, services: ServicesDep
) -> Response:
    """The file of a model. `Range` resumes a broken download, `If-None-Match` saves one."""

    def find() -> tuple[str, str, str]:
        with transaction(services.sessions) as session:
            model = models.get(session, caller.tenant_id, model_id)
            return model.storage_key, model.sha256, model.filename

    key, sha256, filename = await run_in_threadpool(find)
    return await file_response(request, services.store, key=key, sha256=sha256, filename=filename)


@router.patch(
    "/{model_id}",
    operation_id="update_model",
    summary="Change a model",
    responses=problems.responses(errors.ModelNotFound, errors.ModelInUse),
)
def update(model_id: ModelId, body: ModelChange, caller: Writer, session: WriteSession) -> ModelOut:
    """Corrects how images are prepared for a model, its architecture or its name, without another
    upload.

    Fields that are left out stay as they are. While a job that has not ended needs the model, only
    name and metadata can be changed; finished jobs stay what they were.
    """
    try:
        return models.to_out(models.change(session, caller.tenant_id, model_id, body))
    except ValidationError as error:
        raise problems.from_validation(
            error, body.model_dump(mode="json", exclude_unset=True)
        ) from error


@router.delete(
    "/{model_id}",
    operation_id="delete_model",
    summary="Delete a model",
    status_code=204,
    responses=problems.responses(errors.ModelNotFound, errors.ModelInUse),
)
def delete(model_id: ModelId, caller: Writer, session: WriteSession) -> None:
    """Removes a model and its file. Jobs that used it stay."""
    outbox.remove_file(session, models.delete(session, caller.tenant_id, model_id))
