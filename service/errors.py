"""What a request can do wrong, each with its HTTP status, as RFC 9457 problem details.

No web framework here, so that domain code can raise these; `service.problems` turns them into
answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar


@dataclass(frozen=True)
class FieldError:
    """One thing wrong with one place of the request.

    `pointer` is a JSON pointer (RFC 6901) into the body; for other parts of a request it starts
    with `/query`, `/path` or `/header`.
    """

    pointer: str
    detail: str


class ServiceError(Exception):
    """Base of all errors that clients see.

    Attributes:
        detail: What came, what was expected, what to do.
        errors: The places at fault, where there are several or they have a name.
        extensions: Further members of the problem document.
        headers: Headers of the answer.
        always_with: Names of headers that every such answer has, each with its description.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service made a mistake"
    explanation: ClassVar[str] = (
        "Something went wrong that is not your fault. Send the request again; if it fails again, "
        "give the operator the `request_id` of the problem: the log has more under it."
    )
    always_with: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extensions = extensions


CHALLENGE = MappingProxyType({"WWW-Authenticate": "What is asked for (RFC 6750)."})
RETRY_AFTER = MappingProxyType({"Retry-After": "Seconds to wait before the next try."})

# --- Who asks ------------------------------------------------------------------------------------


class Unauthenticated(ServiceError):
    """No key came, or none that is valid."""

    status = HTTPStatus.UNAUTHORIZED
    code = "unauthenticated"
    title = "A valid key is needed"
    explanation = (
        "Send `Authorization: Bearer bds_...` with a key that is neither revoked nor expired. "
        "`sanitizer keys bootstrap` makes the first key of a server; `POST /v1/keys` makes "
        "further ones."
    )
    always_with = CHALLENGE

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="sanitizer"'})


class Forbidden(ServiceError):
    """The key lacks a scope."""

    status = HTTPStatus.FORBIDDEN
    code = "forbidden"
    title = "The key may not do this"
    explanation = (
        "`read` is enough for every GET, `write` is needed to upload, submit, cancel and delete, "
        "`admin` for keys. Use a key with the scope that the problem names."
    )
    always_with = CHALLENGE

    def __init__(self, needed: str, held: Sequence[str]) -> None:
        challenge = f'Bearer realm="sanitizer", error="insufficient_scope", scope="{needed}"'
        super().__init__(
            f"This needs a key with the scope {needed}; yours has {', '.join(held)}.",
            headers={"WWW-Authenticate": challenge},
            needed_scope=needed,
        )


# --- What does not exist -------------------------------------------------------------------------


class NotFound(ServiceError):
    """There is no such thing, or it is somebody else's."""

    status = HTTPStatus.NOT_FOUND
    code = "not_found"
    title = "There is nothing here"
    explanation = (
        "No route of the API has this path. The OpenAPI document at `/openapi.json` lists them."
    )


class ModelNotFound(NotFound):
    """No model of the tenant has this id."""

    code = "model_not_found"
    title = "There is no such model"
    explanation = (
        "None of your models has this id, or it was deleted. `GET /v1/models` lists yours."
    )

    def __init__(self, model_id: str) -> None:
        super().__init__(f"You have no model {model_id!r}.")


class DatasetNotFound(NotFound):
    """No data set of the tenant has this id."""

    code = "dataset_not_found"
    title = "There is no such data set"
    explanation = (
        "None of your data sets has this id, or it was deleted. `GET /v1/datasets` lists yours."
    )

    def __init__(self, dataset_id: str) -> None:
        super().__init__(f"You have no data set {dataset_id!r}.")


class JobNotFound(NotFound):
    """No job of the tenant has this id."""

    code = "job_not_found"
    title = "There is no such job"
    explanation = "None of your jobs has this id. `GET /v1/jobs` lists yours."

    def __init__(self, job_id: str) -> None:
        super().__init__(f"You have no job {job_id!r}.")


class UnknownIds(NotFound):
    """The body names models or data sets that the tenant does not have."""

    code = "unknown_id"
    title = "The request names something you do not have"
    explanation = (
        "`errors` lists the ids that are not yours, or were deleted. `GET /v1/models` and `GET "
        "/v1/datasets` list what you have."
    )

    def __init__(self, wrong: Sequence[FieldError]) -> None:
        super().__init__(
            "; ".join(f"{error.pointer}: {error.detail}" for error in wrong) + ".", errors=wrong
        )


class ArtifactNotFound(NotFound):
    """The job has no such file."""

    code = "artifact_not_found"
    title = "There is no such artifact"
    explanation = "The job left no file with this id. `GET /v1/jobs/{job_id}/artifacts` lists them."

    def __init__(self, artifact_id: str) -> None:
        super().__init__(f"The job has no artifact {artifact_id!r}.")


class ReportNotFound(NotFound):
    """The job has no report, or none yet."""

    code = "report_not_found"
    title = "There is no report"
    explanation = (
        "A report is there once the job has succeeded. `status` and `error` of the job say how far "
        "it came."
    )

    def __init__(self, job_id: str, job_status: str) -> None:
        super().__init__(
            f"The job {job_id} is {job_status}; a report is there once it has succeeded.",
            job_status=job_status,
        )


class KeyNotFound(NotFound):
    """No key of the tenant has this id."""

    code = "key_not_found"
    title = "There is no such key"
    explanation = "None of your keys has this id. `GET /v1/keys` lists yours."

    def __init__(self, key_id: str) -> None:
        super().__init__(f"You have no key {key_id!r}.")


class ProblemNotFound(NotFound):
    """No kind of problem has this name."""

    code = "problem_not_found"
    title = "There is no such kind of problem"
    explanation = "`GET /problems` lists all kinds."

    def __init__(self, slug: str) -> None:
        super().__init__(f"There is no kind of problem {slug!r}.")


class FileGone(ServiceError):
    """A row names a file that the store does not have."""

    status = HTTPStatus.GONE
    code = "file_gone"
    title = "The file is no longer stored"
    explanation = (
        "The record exists but its file was removed from the store: the model was deleted, or the "
        "store lost it. Upload it again, or run the job again that made it."
    )


# --- What cannot be read -------------------------------------------------------------------------


class InvalidRequest(ServiceError):
    """The request does not validate."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "invalid_request"
    title = "The request does not validate"
    explanation = (
        "`errors` lists every place at fault by JSON pointer. Unknown fields are refused, so that "
        "a misspelt setting is never ignored. The OpenAPI document has the schema of every body."
    )


class BadRequest(ServiceError):
    """The request is not well-formed HTTP, multipart or the like."""

    status = HTTPStatus.BAD_REQUEST
    code = "bad_request"
    title = "The request cannot be read"
    explanation = "The request is malformed; `detail` says where."


class HttpError(ServiceError):
    """Another failure of the protocol; the status is the answer's own."""

    status = HTTPStatus.BAD_REQUEST
    code = "http_error"
    title = "The request failed"
    explanation = "`status` and `detail` say what kind of failure this is."


class MethodNotAllowed(ServiceError):
    """The path exists but not with this verb."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    title = "The path has no such method"
    explanation = "The `Allow` header lists the methods that the path has."


class UnsupportedMediaType(ServiceError):
    """The body is of a type that the route does not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    title = "The body has the wrong media type"
    explanation = "Uploads are `multipart/form-data`, all other bodies `application/json`."


class NotAcceptable(ServiceError):
    """None of the media types the client accepts can be served."""

    status = HTTPStatus.NOT_ACCEPTABLE
    code = "not_acceptable"
    title = "No acceptable representation"
    explanation = "The `Accept` header names only media types that the resource does not have."


class RangeNotSatisfiable(ServiceError):
    """The range lies outside the file."""

    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    code = "range_not_satisfiable"
    title = "The range lies outside the file"
    explanation = "The `Content-Range` header of the answer gives the size of the file."
    always_with = MappingProxyType({"Content-Range": "The size of the file, as `bytes */SIZE`."})

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The file has {size} bytes; the range asks for none of them.",
            headers={"Content-Range": f"bytes */{size}"},
            file_bytes=size,
        )


class ContentTooLarge(ServiceError):
    """The body is larger than the operator allows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "content_too_large"
    title = "The body is too large"
    explanation = "`limit_bytes` is the operator's limit for this kind of body."

    def __init__(self, limit: int, received: int | None) -> None:
        came = f"{received} bytes were sent" if received is not None else "more was sent"
        super().__init__(
            f"At most {limit} bytes are accepted here; {came}.",
            limit_bytes=limit,
            received_bytes=received,
        )


class EmptyFile(ServiceError):
    """The file of an upload has no content."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "empty_file"
    title = "The file is empty"
    explanation = "The part `file` of the upload has no content. Check the path that was sent."


class ChecksumMismatch(ServiceError):
    """The content is not what the client announced."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "checksum_mismatch"
    title = "The content differs from its checksum"
    explanation = (
        "The file was damaged on its way or is another one. Nothing was stored: send it again."
    )

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(
            f"sha256 says {expected}, but the content that arrived has {received}.",
            errors=[FieldError("/sha256", "is not that of the file")],
            expected_sha256=expected,
            received_sha256=received,
        )


class UnknownDataFormat(ServiceError):
    """The data set is in no format that can be read."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "unknown_data_format"
    title = "The data set has no known format"
    explanation = (
        "Data sets are a zip of class folders, an npz of uint8 images and labels, or a parquet "
        "file with embedded images. The format is told by the first bytes of the file, not by its "
        "name."
    )


class UnknownModelFormat(ServiceError):
    """The file is surely no checkpoint."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "unknown_model_format"
    title = "The file is no checkpoint"
    explanation = (
        "Models are safetensors, or files of `torch.save` that hold tensors alone. What is told by "
        "a file's first bytes, or by the names in an archive, is refused at once; a file that "
        "passes may still be refused by the job that reads it."
    )


class ProbeOutsideImage(InvalidRequest):
    """A patch does not lie within the model's input."""

    code = "probe_outside_image"
    title = "A probe lies outside the image"
    explanation = (
        "`row` and `column` are those of the patch's top left pixel in the model's input, counted "
        "from 0; negative ones count from the bottom and the right: -3 puts a 3 pixel patch into "
        "the corner."
    )

    def __init__(self, outside: Sequence[FieldError], input_size: tuple[int, int]) -> None:
        height, width = input_size
        listed = "; ".join(f"{error.pointer}: {error.detail}" for error in outside)
        super().__init__(
            f"The model's input is {height} x {width} pixels. {listed}.",
            errors=outside,
            input_size=[height, width],
        )


class ReferenceRefused(ServiceError):
    """The reference does not point into a folder that is open for it."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "reference_refused"
    title = "The reference is refused"
    explanation = (
        "References are `file://` URIs into the folders that the operator has opened with "
        "`SANITIZER_REFERENCE_ROOTS`; links that lead out of them are not followed."
    )


# --- What does not fit the state of things -------------------------------------------------------


class Conflict(ServiceError):
    """The state of the resource does not allow it."""

    status = HTTPStatus.CONFLICT
    code = "conflict"
    title = "The state of the resource does not allow this"
    explanation = "`detail` names the state and what it allows."


class ModelInUse(Conflict):
    """A job that has not ended needs the model."""

    code = "model_in_use"
    title = "A job needs this model"
    explanation = "Cancel the jobs that the problem lists, or wait until they have ended."

    def __init__(self, model_id: str, job_ids: Sequence[str]) -> None:
        super().__init__(
            f"The model {model_id} is used by {', '.join(job_ids)}, which has not ended.",
            job_ids=list(job_ids),
        )


class DatasetInUse(Conflict):
    """A job that has not ended needs the data set."""

    code = "dataset_in_use"
    title = "A job needs this data set"
    explanation = "Cancel the jobs that the problem lists, or wait until they have ended."

    def __init__(self, dataset_id: str, job_ids: Sequence[str]) -> None:
        super().__init__(
            f"The data set {dataset_id} is used by {', '.join(job_ids)}, which has not ended.",
            job_ids=list(job_ids),
        )


class JobNotCancellable(Conflict):
    """The job has ended."""

    code = "job_not_cancellable"
    title = "The job has ended"
    explanation = "A job that has succeeded, failed or been cancelled cannot be cancelled."

    def __init__(self, job_id: str, job_status: str) -> None:
        super().__init__(
            f"The job {job_id} is {job_status} already; only a job that has not ended can be "
            "cancelled.",
            job_status=job_status,
        )


class JobNotEnded(Conflict):
    """The job has not ended."""

    code = "job_not_ended"
    title = "The job has not ended"
    explanation = "Only a job that has ended can be deleted; cancel it first, and wait for its end."

    def __init__(self, job_id: str, job_status: str) -> None:
        super().__init__(
            f"The job {job_id} is {job_status}; only one that has ended can be deleted.",
            job_status=job_status,
        )


class JobNotRetryable(Conflict):
    """The job has neither failed nor been cancelled."""

    code = "job_not_retryable"
    title = "The job cannot be retried"
    explanation = "Only a job that has failed or been cancelled can be retried."

    def __init__(self, job_id: str, job_status: str) -> None:
        super().__init__(
            f"The job {job_id} is {job_status}; only a failed or cancelled job can be retried.",
            job_status=job_status,
        )


class RequestOutdated(Conflict):
    """The stored request of a job is none that this version takes."""

    code = "request_outdated"
    title = "The request is of another version"
    explanation = (
        "The job was submitted to another version of the service, whose request this one does not "
        "take. Read the job's `request`, put right what `detail` names, and submit it as a new job."
    )

    def __init__(self, job_id: str, faults: Sequence[str]) -> None:
        super().__init__(
            f"The request of {job_id} is not valid for this version of the service: "
            f"{'; '.join(faults)}. Submit it as a new job."
        )


class IdempotencyKeyReused(ServiceError):
    """The key came with another payload before."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "idempotency_key_reused"
    title = "The idempotency key belongs to another request"
    explanation = (
        "An `Idempotency-Key` names one request: method, path and payload. Use a new key (a UUID) "
        "for a new request. Keys are forgotten after the time the operator sets, 24 hours by "
        "default."
    )


class IdempotentRequestRunning(Conflict):
    """The first request with this key is still running."""

    code = "idempotent_request_running"
    title = "The first request with this key is still running"
    explanation = "Wait a moment and send the same request again: it gets the first one's answer."


class SecretNotRepeated(Conflict):
    """The key was made by the first request, and its secret is not stored."""

    code = "secret_not_repeated"
    title = "The secret is not shown again"
    explanation = (
        "The first request with this idempotency key made the API key that the problem names. Its "
        "secret is not stored and cannot be repeated. If the first answer was lost, delete that "
        "key and make another."
    )

    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"The key {key_id} was made by an earlier request; its secret is not stored.",
            key_id=key_id,
        )


class TooManyJobs(ServiceError):
    """The tenant has too many jobs waiting."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "too_many_jobs"
    title = "Too many jobs are waiting"
    explanation = (
        "Wait until some of your jobs have run, or cancel some, and send the request again."
    )
    always_with = RETRY_AFTER

    def __init__(self, queued: int, limit: int, *, retry_after_seconds: int = 30) -> None:
        super().__init__(
            f"{queued} of your jobs are waiting; at most {limit} may.",
            headers={"Retry-After": str(retry_after_seconds)},
            limit=limit,
            queued=queued,
        )


# --- What is not there right now -----------------------------------------------------------------


class Unavailable(ServiceError):
    """Something that the service needs does not answer."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    title = "The service is not available"
    explanation = "The database or the store does not answer. Nothing was lost: try again soon."
    always_with = RETRY_AFTER

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "5"})


def kinds() -> dict[str, type[ServiceError]]:
    """Every kind of problem by its code, in the order of this file."""
    found: dict[str, type[ServiceError]] = {}
    waiting: list[type[ServiceError]] = [ServiceError]
    while waiting:
        kind = waiting.pop(0)
        found[kind.code] = kind
        waiting += kind.__subclasses__()
    return dict(sorted(found.items()))
