"""What the API says about jobs. No web framework here: the worker reads stored requests with it."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    PlainSerializer,
    SkipValidation,
    field_validator,
    model_validator,
)

from sanitizer.cost.estimate import EstimateBasis
from sanitizer.cost.workload import DeviceKind
from sanitizer.events import Stage
from sanitizer.report.model import ArtifactKind, Evaluation, Report, Verdict
from sanitizer.spec import (
    ArgdConfig,
    Device,
    Devices,
    Inspect,
    MeasureDurability,
    MethodConfig,
    Policy,
    Precision,
    Probes,
    ScreenImages,
    Seed,
    check_batch_sizes,
    check_probe_names,
)
from service.db.tables import JobStatus
from service.fields import Input, Metadata, Name, Output, PlainText, Time
from service.jobs.codes import ERROR_MEANINGS, WARNING_MEANINGS, described
from service.pagination import Page

Share = Annotated[float, Field(ge=0, le=1)]

Part = TypeVar("Part")
AsStored = Annotated[Part, SkipValidation, PlainSerializer(lambda stored: stored)]
"""JSON of a stored request: it was valid when it came, and today's rules may be others."""

# --- Coming in -----------------------------------------------------------------------------------


class JobData(Input):
    """Images of a data set that a job uses."""

    dataset_id: PlainText = Field(
        max_length=40,
        description="Id of a data set, `dataset_...`.",
        examples=["dataset_01920000000070008000000000000002"],
    )
    images: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Draw this many, stratified by class. Null: all of them.",
    )
    seed: Seed = Field(default=0, description="Of the draw.")


class JobRequest(Input):
    """What a job is asked to do: the part of `JobCreate` that is stored and repeated by a retry."""

    model_id: PlainText = Field(
        max_length=40,
        description="Id of the suspect model, `model_...`.",
        examples=["model_01920000000070008000000000000001"],
    )
    name: Name | None = Field(default=None, description="For people; need not be unique.")
    metadata: Metadata = Field(default_factory=dict)
    clean_data: JobData = Field(
        description="Clean images to train on: a few per cent of the training data are enough."
    )
    evaluation_data: JobData | None = Field(
        default=None,
        description="What ACC, ASR and RA are measured on. Null: `holdout` of the clean images is "
        "kept apart for it.",
    )
    holdout: float = Field(
        default=0.2,
        gt=0,
        lt=0.9,
        description="Share of the clean images kept apart where there is no evaluation data.",
    )
    method: MethodConfig = Field(
        default_factory=ArgdConfig,
        description="How to sanitize. Left out: `argd` with preset `default`.",
    )
    probes: Probes = Field(
        default=(),
        description="Triggers whose effect is measured before and after. Never trained on, and "
        "never used to choose anything.",
    )
    policy: Policy = Field(
        default_factory=Policy, description="What the figures must be for the verdict `allowed`."
    )
    screen: ScreenImages = True
    inspect: Inspect = False
    durability: MeasureDurability = False
    seed: Seed = Field(default=0, description="Of every random choice of the run.")
    device: Device | None = Field(
        default=None, description="Where to compute. Null: what the worker is set up for."
    )
    devices: Devices = 1
    precision: Precision = Field(
        default=Precision.AUTO,
        description="What the networks compute in while they are trained; weights are kept, and "
        "models measured, as they came. `auto`: bfloat16 where the processor or the device "
        "is faster in it, else float32.",
    )

    _probe_names = field_validator("probes")(check_probe_names)

    @model_validator(mode="after")
    def _batches_for_all(self) -> Self:
        check_batch_sizes(self.method, self.devices)
        return self


class JobCreate(JobRequest):
    """A job to run, or only to check."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": "model_01920000000070008000000000000001",
                    "clean_data": {
                        "dataset_id": "dataset_01920000000070008000000000000002",
                        "images": 2500,
                    },
                    "method": {"name": "argd", "preset": "paper"},
                    "probes": [
                        {
                            "kind": "patch",
                            "name": "corner",
                            "target_class": 0,
                            "row": -3,
                            "column": -3,
                            "pixels": [[255, 0, 255], [0, 255, 0], [255, 0, 255]],
                        }
                    ],
                }
            ]
        }
    )

    validate_only: bool = Field(
        default=False,
        description="Make every check and answer 200 with what was checked; store and run nothing.",
    )

    def as_request(self) -> JobRequest:
        """The part that is stored."""
        return JobRequest.model_validate(
            {name: getattr(self, name) for name in JobRequest.model_fields}
        )


# --- Going out -----------------------------------------------------------------------------------


class ProbeFigures(Output):
    """What one trigger does to a model. Shares in [0, 1]."""

    name: str
    asr: Share = Field(
        description="Attack success rate: of the images of other classes, the share classified as "
        "the target with the trigger on."
    )
    ra: Share = Field(
        description="Robust accuracy: of the same images, the share still classified right."
    )


class Figures(Output):
    """The main figures of one model. Shares in [0, 1]."""

    accuracy: Share = Field(description="ACC: the share of clean images classified right.")
    probes: list[ProbeFigures]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """The main figures of an evaluation."""
        return cls(
            accuracy=evaluation.accuracy.value,
            probes=[
                ProbeFigures(name=probe.name, asr=probe.asr.value, ra=probe.ra.value)
                for probe in evaluation.probes
            ],
        )


class JobWarning(Output):
    """Something a person should know that did not stop the run."""

    code: str = Field(examples=["preparation_suspected"], **described(WARNING_MEANINGS))
    message: str = Field(description="What was seen, and what to do.")


class JobSummary(Output):
    """The main figures of a report; stored as `jobs.summary`."""

    architecture: str
    before: Figures
    after: Figures
    reasons: list[str] = Field(description="Why the verdict is what it is.")
    warnings: list[JobWarning] = Field(
        default_factory=list,
        description="Of the run, in its order; those that speak against its figures are among the "
        "reasons too. Jobs of older versions have none here.",
    )
    seconds: float = Field(ge=0, description="How long the run took.")

    @classmethod
    def of(cls, report: Report) -> Self:
        """The summary of a report."""
        return cls(
            architecture=report.model.architecture,
            before=Figures.of(report.before),
            after=Figures.of(report.after),
            reasons=report.decision.reasons,
            warnings=[JobWarning(code=each.code, message=each.message) for each in report.warnings],
            seconds=report.seconds,
        )


class JobError(Output):
    """Why a job failed."""

    code: str = Field(examples=["class_mismatch"], **described(ERROR_MEANINGS))
    message: str = Field(description="What came, what was expected, what to do.")
    data: dict[str, Any] = Field(description="Details for programs; by `code`.")


class JobLinks(Output):
    """Where to go from a job; paths on this server."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    self_: str = Field(alias="self")
    cancel: str
    events: str
    metrics: str
    artifacts: str
    report: str


class JobOut(Output):
    """A job, as lists show it."""

    object: Literal["job"]
    id: str = Field(description="`job_...`; sorts by time of creation.")
    name: str | None
    status: JobStatus = Field(
        description="How the run goes; `succeeded`, `failed` and `cancelled` are final."
    )
    verdict: Verdict | None = Field(
        description="What the policy makes of the figures. Null until the job has succeeded."
    )
    stage: Stage | None = Field(description="What runs now or ran last.")
    progress: Share = Field(description="Share of the run that is done, by estimated work.")
    waiting_reason: str | None = Field(
        description="Why a queued job does not run yet. Null for every other status."
    )
    error: JobError | None
    summary: JobSummary | None = Field(description="Null until the job has succeeded.")
    model_id: str
    clean_data: AsStored[JobData]
    evaluation_data: AsStored[JobData | None]
    method: str = Field(description="Name of the method.")
    seed: int
    result_model_id: str | None = Field(
        description="The sanitized model: an ordinary model to download or to use in a job."
    )
    retry_of_id: str | None = Field(description="The job this one repeats.")
    attempt: int = Field(ge=0, description="How many times a worker has taken the job up.")
    metadata: Metadata
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    updated_at: Time
    links: JobLinks


class JobDetail(JobOut):
    """A job with the whole request, every default filled in."""

    request: AsStored[JobRequest]


class JobList(Page[JobOut]):
    """One page of jobs, newest first."""


class JobCheck(Output):
    """One check of a request."""

    name: Literal["request", "model", "clean_data", "evaluation_data", "probes", "queue"]
    outcome: Literal["passed", "deferred"] = Field(
        description="`deferred`: it needs the file's content, so the run makes it first."
    )
    detail: str


class JobEstimate(Output):
    """What the job will take once it runs; waiting in the queue is not in it."""

    seconds: float = Field(ge=0, description="From the start of its process to its report.")
    seconds_low: float = Field(ge=0, description="It will hardly take less.")
    seconds_high: float = Field(ge=0, description="It will hardly take more.")
    training_seconds: float = Field(
        ge=0, description="Of `seconds`: all training stages, retuning among them."
    )
    evaluation_seconds: float = Field(
        ge=0, description="Of `seconds`: measuring before, after and after each epoch."
    )
    other_seconds: float = Field(ge=0, description="Of `seconds`: start, loading, writing.")
    peak_host_bytes: int = Field(
        ge=0, description="Most memory that is resident at a time, mapped images included."
    )
    peak_device_bytes: int | None = Field(
        ge=0, description="Most memory on the CUDA device. Null: it runs on the CPU."
    )
    architecture: str = Field(description="That was reckoned with.")
    device: DeviceKind = Field(description="That was reckoned with.")
    clean_images: int = Field(ge=0, description="To train on, that were reckoned with.")
    evaluation_images: int = Field(ge=0, description="That were reckoned with.")
    basis: EstimateBasis = Field(
        description="`own_jobs`: your finished jobs with this architecture; `installation`: the "
        "speed of the machine, measured with other work; `rule_of_thumb`: nothing was measured yet."
    )
    explanation: list[str] = Field(
        description="For people: what it rests on, and what had to be guessed."
    )


class JobValidation(Output):
    """The answer to `validate_only`: every check was made, nothing was stored."""

    object: Literal["job.validation"]
    checks: list[JobCheck]
    estimate: JobEstimate = Field(description="What the job would take.")
    request: JobRequest = Field(description="The request with every default filled in.")


class JobEventOut(Output):
    """One event of a job. The stream sends the same object as `data`, with `sequence` as its id."""

    object: Literal["job.event"]
    job_id: str
    sequence: int = Field(ge=1, description="1, 2, 3, ... within the job, without gaps.")
    type: Literal["status", "stage", "progress", "metric", "warning", "result", "error"]
    attempt: int = Field(ge=0)
    at: Time
    data: dict[str, Any] = Field(
        description="By `type`. `status`: {status, ...}; `stage`: {stage, message}; `progress`: "
        "{stage, fraction, epoch, epochs, step, steps}; `metric`: {stage, epoch, values}; "
        "`warning`: {code, message}, the code one of `JobWarning`, or of `JobError` where the "
        "machine was at fault and the job is tried again; `result`: {artifacts}; `error`: {code, "
        "fault, message, data}, with `fault` `input` or `machine`."
    )


class JobEventList(Page[JobEventOut]):
    """One page of events, oldest first; the cursor is the `sequence` of the last one."""


class JobMetricOut(Output):
    """One value of one epoch."""

    object: Literal["job.metric"]
    stage: Stage
    epoch: int | None = Field(
        ge=1, description="Counted from 1. Null: an evaluation outside training."
    )
    name: str = Field(
        description="Of training: `loss` and its parts (`cross_entropy`, `node`, `edge`, "
        "`embedding`, `perturbed`, `shift`), `train_accuracy`, `learning_rate`, `seconds`. Of "
        "measuring: `accuracy`, `asr.<probe>`, `ra.<probe>`. Of screening: `left_out`, "
        "`left_out.<class>`. Of searches: `estimated_asr.<class>`, `anomaly`, `rate.<kind>`. Of "
        "stages that change the network at once: `pruned_channels`, `heldout_accuracy`, `gone`, "
        "`regained` and others. Of a choice among methods: `accuracy.<method>`, "
        "`residual.<method>`. Of durability: `retuned_accuracy`, `retuned_asr.<probe>`, "
        "`poisoned_asr.<probe>`, `control_asr.<probe>`. Later versions may add some.",
        examples=["train_accuracy"],
    )
    value: float
    at: Time


class JobMetricList(Page[JobMetricOut]):
    """One page of figures, in the order they came."""


class ArtifactLinks(Output):
    """Where to go from an artifact."""

    file: str


class ArtifactOut(Output):
    """A file a job left."""

    object: Literal["artifact"]
    id: str = Field(description="`artifact_...`.")
    job_id: str
    name: str = Field(description="File name.")
    kind: ArtifactKind
    media_type: str
    bytes: int = Field(ge=0)
    sha256: str
    created_at: Time
    links: ArtifactLinks


class ArtifactList(Page[ArtifactOut]):
    """All files of a job."""
