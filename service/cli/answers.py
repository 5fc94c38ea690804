"""What the command reads of the API's answers.

A tolerant reader: it names what the command uses and ignores the rest, so that a newer server does
not break an older command. The schemas of `service.*.schemas` refuse what they do not know, and
load the tables. A test holds the two together.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from sanitizer.report.model import Evaluation, Verdict

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class Answer(BaseModel):
    """Base of all; keeps the document it was read from."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    _document: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def read(cls, document: dict[str, Any]) -> Self:
        """The answer in a JSON document.

        Raises:
            pydantic.ValidationError: It is not this kind of answer.
        """
        answer = cls.model_validate(document)
        answer._document = document
        return answer

    @property
    def document(self) -> dict[str, Any]:
        """The API's object as it came."""
        return self._document


class ModelAnswer(Answer):
    """A model."""

    id: str
    name: str
    filename: str
    bytes: int
    sha256: str
    architecture: str
    source_job_id: str | None
    created_at: str


class DatasetAnswer(Answer):
    """A data set."""

    id: str
    name: str
    format: str
    bytes: int | None
    reference: str | None
    created_at: str


class ProbeFigures(Answer):
    """What one trigger does to a model. Shares in [0, 1]."""

    name: str
    asr: float
    ra: float


class Figures(Answer):
    """The main figures of one model. Shares in [0, 1]."""

    accuracy: float
    probes: list[ProbeFigures]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """The main figures of an evaluation in a report."""
        return cls(
            accuracy=evaluation.accuracy.value,
            probes=[
                ProbeFigures(name=p.name, asr=p.asr.value, ra=p.ra.value) for p in evaluation.probes
            ],
        )


class JobSummary(Answer):
    """The main figures of a run."""

    architecture: str
    before: Figures
    after: Figures
    reasons: list[str]
    seconds: float


class JobError(Answer):
    """Why a job failed."""

    code: str
    message: str


class JobAnswer(Answer):
    """A job."""

    id: str
    name: str | None
    status: str
    verdict: Verdict | None
    stage: str | None
    progress: float
    waiting_reason: str | None
    error: JobError | None
    summary: JobSummary | None
    method: str
    result_model_id: str | None
    created_at: str

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL_STATES


class JobCheck(Answer):
    """One check of a request."""

    name: str
    outcome: str
    detail: str


class JobEstimate(Answer):
    """What a job would take."""

    seconds: float
    seconds_low: float
    seconds_high: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    explanation: list[str]


class JobValidation(Answer):
    """The answer to a request that was only checked."""

    checks: list[JobCheck]
    estimate: JobEstimate | None = None
    """None from a server that does not estimate yet."""


class JobEvent(Answer):
    """One event of a job."""

    sequence: int
    type: str
    at: str
    data: dict[str, Any]


class ArtifactAnswer(Answer):
    """A file a job left."""

    id: str
    job_id: str
    name: str
    kind: str
    bytes: int
    sha256: str


class KeyAnswer(Answer):
    """A key; its secret only when it was just made."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None
    secret: str | None = Field(default=None)


class ListAnswer(Answer):
    """One page of a list, or several of them put together."""

    data: list[dict[str, Any]]
    has_more: bool
    next_cursor: str | None
