"""What is checked of a job before it is accepted: all that needs no look into a file."""

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sanitizer.spec import GivenModelOptions, ModelOptions, PatchProbe
from service.datasets.repository import DatasetRepository
from service.db.tables import Job, JobStatus, Model
from service.errors import (
    FieldError,
    InvalidRequest,
    ProbeOutsideImage,
    TooManyJobs,
    UnknownIds,
)
from service.jobs.schemas import JobCheck, JobRequest
from service.keys.repository import KeyRepository
from service.models.repository import ModelRepository


def check(
    session: Session, tenant_id: str, request: JobRequest, *, max_queued: int
) -> list[JobCheck]:
    """Checks a request; the tenant's other submissions wait until the transaction ends.

    Raises:
        InvalidRequest: The model is described as no run takes it.
        ProbeOutsideImage: A patch does not lie within the model's input.
        TooManyJobs: `max_queued` jobs of the tenant are waiting.
        UnknownIds: The tenant has no such model or data set.
    """
    KeyRepository.from_session(session).lock_tenant(tenant_id)
    model = _check_ids(session, tenant_id, request)
    checks = [
        JobCheck(name="request", outcome="passed", detail="Every field is valid."),
        JobCheck(
            name="model",
            outcome="deferred",
            detail=f"{model.filename} is yours; the run reads its weights.",
        ),
        JobCheck(
            name="clean_data",
            outcome="deferred",
            detail="The data set is yours; the run reads its images and compares the classes.",
        ),
    ]
    if request.evaluation_data is not None:
        checks.append(
            JobCheck(
                name="evaluation_data",
                outcome="deferred",
                detail="The data set is yours; the run reads its images and compares the classes.",
            )
        )
    checks.append(_check_probes(model, request))
    checks.append(_check_queue(session, tenant_id, max_queued))
    return checks


def _check_ids(session: Session, tenant_id: str, request: JobRequest) -> Model:
    wrong = []
    model = ModelRepository.from_session(session).get(tenant_id, request.model_id)
    if model is None:
        wrong.append(FieldError("/model_id", f"you have no model {request.model_id!r}"))
    datasets = DatasetRepository.from_session(session)
    named = {"clean_data": request.clean_data, "evaluation_data": request.evaluation_data}
    for field, data in named.items():
        if data is not None and datasets.get(tenant_id, data.dataset_id) is None:
            wrong.append(
                FieldError(f"/{field}/dataset_id", f"you have no data set {data.dataset_id!r}")
            )
    if model is None or wrong:
        raise UnknownIds(wrong)
    _check_options(model)
    return model


def _check_options(model: Model) -> None:
    """What an older version took and no run does is told before the job waits in a queue."""
    try:
        GivenModelOptions.model_validate(model.options)
    except ValidationError as error:
        said = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(
            f"The model {model.id} cannot be run as it is described. {said} Correct it with PATCH "
            f"/v1/models/{model.id}.",
            errors=[FieldError("/model_id", said)],
        ) from error


def _check_probes(model: Model, request: JobRequest) -> JobCheck:
    size = ModelOptions.model_validate(model.options).input_size
    patches = [(i, p) for i, p in enumerate(request.probes) if isinstance(p, PatchProbe)]
    if size is None:
        detail = "The model's input size is not given, so the run checks the probes against it."
        return JobCheck(
            name="probes", outcome="deferred" if request.probes else "passed", detail=detail
        )
    outside = [
        error
        for index, patch in patches
        for error in _places_outside(patch, f"/probes/{index}", size)
    ]
    if outside:
        raise ProbeOutsideImage(outside, size)
    if not request.probes:
        return JobCheck(name="probes", outcome="passed", detail="No trigger is measured.")
    return JobCheck(
        name="probes",
        outcome="deferred",
        detail=f"Probes: {len(request.probes)}. Patches lie within {size[0]} x {size[1]} pixels; "
        "the run checks pictures and target classes.",
    )


def _places_outside(patch: PatchProbe, pointer: str, size: tuple[int, int]) -> list[FieldError]:
    height, width = size
    axes = (
        ("row", patch.row, len(patch.pixels), height),
        ("column", patch.column, len(patch.pixels[0]), width),
    )
    found = []
    for name, given, extent, available in axes:
        first = given if given >= 0 else available + given
        if first < 0 or first + extent > available:
            found.append(
                FieldError(
                    f"{pointer}/{name}",
                    f"{given} puts the patch at {first} to {first + extent - 1}; the input has 0 "
                    f"to {available - 1}",
                )
            )
    return found


def _check_queue(session: Session, tenant_id: str, max_queued: int) -> JobCheck:
    queued = (
        session.scalar(
            select(func.count())
            .select_from(Job)
            .where(Job.tenant_id == tenant_id, Job.status == JobStatus.QUEUED)
        )
        or 0
    )
    if queued >= max_queued:
        raise TooManyJobs(queued, max_queued)
    return JobCheck(
        name="queue", outcome="passed", detail=f"{queued} of at most {max_queued} jobs are waiting."
    )
