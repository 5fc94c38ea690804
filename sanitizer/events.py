"""Typed events of a run: one JSON object a line on the child's standard output.

The supervisor parses them with `parse`; nothing else may appear on that stream.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from sanitizer.errors import Fault
from sanitizer.report.model import ArtifactKind, Told, readable


class Stage(StrEnum):
    """The stages of a run; the method says which there are between the measurements.

    `screen` looks for images among the clean ones that carry a trigger, `fit` for what of the
    augmentation the model does not bear, `seek` for triggers of known kinds that it falls for, to
    train it against these; `go_back` goes some of the way back to it. `inspect` and `reinspect`
    search for triggers, before and after, and `retune` trains copies of the sanitized model
    further, where that was asked for. `choose` compares what several methods made of the model.
    """

    LOAD = "load"
    SCREEN = "screen"
    BASELINE = "baseline"
    FIT = "fit"
    INSPECT = "inspect"
    SEEK = "seek"
    TEACHER = "teacher"
    FINETUNE = "finetune"
    DISTIL = "distil"
    GO_BACK = "go_back"
    MASK = "mask"
    PRUNE = "prune"
    CURVE = "curve"
    STATISTICS = "statistics"
    UNLEARN = "unlearn"
    SHIFT = "shift"
    CHOOSE = "choose"
    EVALUATE = "evaluate"
    RETUNE = "retune"
    REINSPECT = "reinspect"
    WRITE = "write"


def _now() -> datetime:
    return datetime.now(UTC)


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: datetime = Field(default_factory=_now)


class StageEvent(_Event):
    """A stage begins."""

    type: Literal["stage"] = "stage"
    stage: Stage
    message: str
    """What happens now, for people."""


class ProgressEvent(_Event):
    """How far the run is. Sent at most a few times a second."""

    type: Literal["progress"] = "progress"
    stage: Stage
    fraction: float = Field(ge=0, le=1)
    """Share of the whole run that is done, by estimated work."""
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None


class MetricEvent(_Event):
    """Figures of one epoch of a stage, or of an evaluation. Shares are in [0, 1]."""

    type: Literal["metric"] = "metric"
    stage: Stage
    epoch: int | None = None
    """1-based; none for an evaluation outside training."""
    values: dict[str, float]
    """By name: `loss`, `cross_entropy`, `node`, `edge`, `embedding`, `perturbed`,
    `shift`, `train_accuracy`, `learning_rate`, `seconds`; after an evaluation `accuracy`,
    `asr.<probe>`, `ra.<probe>`; after a search `estimated_asr.<class>`, `anomaly`, or of kinds
    of triggers `rate.<kind>`; after going back `gone`, `regained`; of a choice
    `accuracy.<method>`, `residual.<method>`; after retuning `retuned_accuracy`,
    `retuned_asr.<probe>`, `poisoned_asr.<probe>`, `control_asr.<probe>`."""


class WarningEvent(_Event):
    """Something a person should know that does not stop the run."""

    type: Literal["warning"] = "warning"
    code: str
    message: Told


class Artifact(BaseModel):
    """A file the run leaves in its output folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """File name, relative to the output folder."""
    kind: ArtifactKind
    media_type: str
    bytes: int
    sha256: str


class ResultEvent(_Event):
    """The run succeeded; always the last event."""

    type: Literal["result"] = "result"
    artifacts: list[Artifact]


class ErrorEvent(_Event):
    """The run failed; always the last event."""

    type: Literal["error"] = "error"
    code: str
    fault: Fault
    message: Told
    data: Annotated[dict[str, Any], AfterValidator(readable)] = Field(default_factory=dict)


Event = Annotated[
    StageEvent | ProgressEvent | MetricEvent | WarningEvent | ResultEvent | ErrorEvent,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def to_line(event: Event) -> str:
    """One line of JSON, newline included."""
    return event.model_dump_json() + "\n"


def parse(line: str | bytes) -> Event:
    """The event in one line.

    Raises:
        pydantic.ValidationError: The line is no event.
    """
    return _ADAPTER.validate_json(line)
