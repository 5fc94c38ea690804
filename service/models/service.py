"""Models: stored, listed, changed, deleted."""

from sqlalchemy.orm import Session

from sanitizer.spec import ModelOptions
from service.db.base import utc_now
from service.db.tables import Model
from service.errors import ModelInUse, ModelNotFound
from service.keys.repository import KeyRepository
from service.models.repository import ModelRepository
from service.models.schemas import ModelChange, ModelFields, ModelLinks, ModelOut
from service.multipart import Upload


def storage_key(tenant_id: str, model_id: str) -> str:
    """Where the file of an uploaded model lies."""
    return f"tenants/{tenant_id}/models/{model_id}"


def create(
    session: Session, tenant_id: str, model_id: str, upload: Upload, fields: ModelFields
) -> Model:
    """Makes the row of an uploaded model."""
    options = {name: getattr(fields, name) for name in ModelOptions.model_fields}
    model = Model(
        id=model_id,
        tenant_id=tenant_id,
        name=fields.name or upload.filename,
        filename=upload.filename,
        bytes=upload.stored.bytes,
        sha256=upload.stored.sha256,
        storage_key=upload.key,
        options=ModelOptions(**options).model_dump(mode="json"),
        metadata_=dict(fields.metadata),
    )
    ModelRepository.from_session(session).add(model)
    return model


def get(session: Session, tenant_id: str, model_id: str) -> Model:
    """A model of the tenant.

    Raises:
        ModelNotFound: There is none, or it is somebody else's.
    """
    model = ModelRepository.from_session(session).get(tenant_id, model_id)
    if model is None:
        raise ModelNotFound(model_id)
    return model


def change(session: Session, tenant_id: str, model_id: str, wanted: ModelChange) -> Model:
    """Changes what is said about a model; its file stays as it is.

    Raises:
        ModelInUse: How it is prepared would change under a job that has not ended.
        ModelNotFound: There is none, or it is somebody else's.
        ValidationError: What comes out does not validate: a field, or what goes together.
    """
    KeyRepository.from_session(session).lock_tenant(tenant_id)  # no job may be submitted meanwhile
    model = get(session, tenant_id, model_id)
    given = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    options = {name: value for name, value in given.items() if name in ModelOptions.model_fields}
    if options.get("architecture", "") is None:
        options["architecture"] = "auto"
    # As an upload is checked: by the same model. Not where nothing of it is given: what is stored
    # may be of an older version, which took more.
    stored = model.options
    if options:
        fields = ModelFields.model_validate({**model.options, **options})
        changed = {name: getattr(fields, name) for name in ModelOptions.model_fields}
        stored = ModelOptions(**changed).model_dump(mode="json")
    if stored != model.options:
        jobs = ModelRepository.from_session(session).unfinished_jobs(model.id)
        if jobs:
            raise ModelInUse(model.id, jobs)
        model.options = stored
    if "name" in given:
        model.name = wanted.name or model.filename
    if "metadata" in given:
        model.metadata_ = dict(wanted.metadata or {})
    session.flush()
    return model


def delete(session: Session, tenant_id: str, model_id: str) -> str:
    """Marks a model as deleted; its file can go once that is committed.

    Returns:
        The key of its file.

    Raises:
        ModelInUse: A job that has not ended needs it.
        ModelNotFound: There is none, or it is somebody else's.
    """
    KeyRepository.from_session(session).lock_tenant(tenant_id)  # no job may be submitted meanwhile
    model = get(session, tenant_id, model_id)
    jobs = ModelRepository.from_session(session).unfinished_jobs(model.id)
    if jobs:
        raise ModelInUse(model.id, jobs)
    model.deleted_at = utc_now()
    return model.storage_key


def to_out(model: Model) -> ModelOut:
    """What clients see."""
    options = ModelOptions.model_validate(model.options)
    return ModelOut(
        object="model",
        id=model.id,
        name=model.name,
        filename=model.filename,
        bytes=model.bytes,
        sha256=model.sha256,
        architecture=options.architecture,
        input_size=None if options.input_size is None else list(options.input_size),
        mean=None if options.mean is None else list(options.mean),
        std=None if options.std is None else list(options.std),
        metadata=model.metadata_,
        source_job_id=model.source_job_id,
        created_at=model.created_at,
        links=ModelLinks(self_=f"/v1/models/{model.id}", file=f"/v1/models/{model.id}/file"),
    )
