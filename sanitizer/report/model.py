"""The report of a run: what came in, what was done, what came out, with figures.

Torch-free: the service reads and serves it. Shares (accuracy, ASR, RA, DER) are in [0, 1].
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sanitizer.report.telling import LEAST_TOLD, RATES_OF_OLDER_REPORTS, STILL_LED

SCHEMA_VERSION = "1"

SUSPICIOUS_ANOMALY = 1.75
"""From which anomaly on a class stands out.

Chosen on 17 small models (docs/results/inspection.md, split `development`): of changes with enough
rate, those for the target of a backdoor came to 2.1 and more, others to 1.4 at most.
"""

FOUND_IN_TRIAL = (13, 20)
ACCUSED_IN_TRIAL = (0, 20)
"""Backdoored and clean models with a finding, and how many there were, on other models than the
threshold was chosen on (split `final`). A test holds them to docs/results/inspection.json."""


class ArtifactKind(StrEnum):
    """What a file of a run is for."""

    MODEL = "model"
    REPORT = "report"
    REPORT_PAGE = "report_page"
    PLOT = "plot"


class Verdict(StrEnum):
    """What the policy makes of the figures."""

    ALLOWED = "allowed"
    BLOCKED = "blocked"
    UNDECIDED = "undecided"


_SURROGATE = re.compile("[\ud800-\udfff]")


def readable(value: Any) -> Any:
    """A text that JSON can hold, or what has such in lists and dictionaries.

    Names of files may have bytes that are no UTF-8, which Python keeps as surrogates: each becomes
    a replacement character.
    """
    match value:
        case str():
            return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
        case dict():
            return {readable(key): readable(each) for key, each in value.items()}
        case list() | tuple():
            return [readable(each) for each in value]
    return value


Told = Annotated[str, AfterValidator(readable)]
"""Text with names of files in it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Proportion(_Part):
    """A share of images, with its 95% Wilson score interval (Wilson 1927)."""

    value: float = Field(ge=0, le=1)
    count: int = Field(ge=0, description="Images counted.")
    total: int = Field(ge=1, description="Images looked at.")
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class ProbeResult(_Part):
    """What a trigger does to a model, over the images whose true class is not the target."""

    name: str
    target_class: int
    asr: Proportion = Field(
        description="Attack success rate: the share classified as the target with the trigger on."
    )
    ra: Proportion = Field(
        description="Robust accuracy: the share still classified as the true class."
    )
    asr_per_class: dict[int, Proportion] = Field(description="By true class.")
    ra_per_class: dict[int, Proportion] = Field(description="By true class.")
    natural_rate: Proportion = Field(
        description="The share classified as the target without the trigger: what ASR can fall to."
    )


class Evaluation(_Part):
    """The figures of one model."""

    accuracy: Proportion
    accuracy_per_class: dict[int, Proportion]
    probes: list[ProbeResult]


class ChangeFamily(StrEnum):
    """What kind of change of an image a search looks for."""

    PATCH = "patch"
    PATTERN = "pattern"
    FEATURES = "features"


class FoundChange(_Part):
    """The smallest change of a kind that was found to lead images to a class."""

    family: ChangeFamily = Field(
        description="`patch`: some pixels are replaced; `pattern`: the same values are added to "
        "every image; `features`: the same values are added to every feature map, as warps and "
        "filters do to some degree."
    )
    size: float = Field(
        ge=0,
        description="`patch`: share of the image's pixels; `pattern`: root mean square, pixel "
        "values from 0 to 255; `features`: root mean square, in standard deviations of a channel.",
    )
    reached: bool = Field(
        description="Whether it led the images it was made on there; if not, `size` is that of the "
        "last try."
    )
    rate: Proportion = Field(
        description="Of other images, whose class is another, the share that is led there by the "
        "change, cut down to the size that a trigger may have."
    )
    anomaly: float = Field(
        description="How much smaller it is than those of the other classes: the distance of the "
        "logarithm of its size from their median, in deviations (median absolute deviation times "
        "1.4826). Positive: smaller."
    )


class ClassInspection(_Part):
    """What was found that leads images to one class."""

    target_class: int
    natural_rate: Proportion = Field(
        description="Of the images that `rate` is measured on, the share that the model takes for "
        "this class as they are."
    )
    changes: list[FoundChange]
    estimated_asr: float = Field(
        ge=0, le=1, description="The highest `rate` of them: what a hidden trigger may reach."
    )


class Inspection(_Part):
    """A search of one model for triggers, on clean images alone."""

    classes: list[ClassInspection] = Field(description="Those that were searched.")
    num_classes: int = Field(description="That the model has.")
    anomaly: float = Field(description="The highest of any class and family.")
    suspicious: list[int] = Field(description="Classes with a finding, the strongest first.")
    searched_images: int = Field(description="That changes were made on.")
    measured_images: int = Field(description="Others, that `rate` is measured on.")
    seconds: float

    @property
    def strongest(self) -> ClassInspection:
        """The class that stands out most; where none does, that which most images are led to."""
        if self.suspicious:
            first = self.suspicious[0]
            return next(each for each in self.classes if each.target_class == first)
        return max(self.classes, key=lambda each: each.estimated_asr)


class Inspections(_Part):
    """The searches before and after, and what became of the changes that were found before."""

    before: Inspection
    after: Inspection
    carried: list[ClassInspection] = Field(
        description="The changes found in the model as it came, on the sanitized model. Those of "
        "features are left out: its features are others."
    )


class TryOutcome(StrEnum):
    """What became of a method that was to be tried; `left_out`: there is nothing to compare, since
    it was not run or diverged."""

    KEPT = "kept"
    DROPPED = "dropped"
    LEFT_OUT = "left_out"


class Try(_Part):
    """One of several methods, on the suspect model, and why it was kept or not.

    Attributes named by shares are null where it was left out.
    """

    method: str
    outcome: TryOutcome
    reason: str
    accuracy: Proportion | None = Field(
        default=None, description="On clean images that no method was trained on."
    )
    residual: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The highest share of those images that a change found in the model as it came "
        "still leads to its class, less the share that goes there without it.",
    )
    target_class: int | None = Field(default=None, description="That class.")
    seconds: float = 0.0


class Retuned(_Part):
    """Figures of the sanitized model, or of a copy of it that was trained further."""

    poisoned_images: int = Field(ge=0, description="Of those that it was trained on.")
    accuracy: Proportion
    rates: list[Proportion] = Field(
        description="Of each trigger that was tried: the share of the images of other classes that "
        "it leads to its label."
    )
    natural: list[Proportion] = Field(
        default_factory=list, description="Of each: of the same images without the trigger."
    )
    seconds: float


class ProbeDurability(_Part):
    """What becomes of a trigger's effect when the sanitized model is trained further."""

    name: str
    target_class: int
    control_class: int = Field(
        description="Another class, that the trigger was not given for: the target's number and 1, "
        "or 0 after the last."
    )
    poisoned_images: int = Field(
        ge=1, description="Of the clean images, that a poisoned retuning put the trigger on."
    )
    delivered: Proportion = Field(
        description="Attack success rate of the sanitized model, on the images of all these "
        "figures."
    )
    clean: Proportion = Field(description="The same after retuning on the clean images.")
    clean_natural: Proportion | None = Field(
        default=None,
        description="The share of the same images that is called the target then without the "
        "trigger. Null: an older version ran.",
    )
    poisoned: Proportion = Field(
        description="The same after retuning with poisoned images, labelled as the target."
    )
    poisoned_accuracy: Proportion = Field(description="Clean accuracy after that.")
    control_delivered: Proportion = Field(
        description="Of the images whose class is not `control_class`, the share that the trigger "
        "leads there in the sanitized model."
    )
    control: Proportion = Field(
        description="The same after retuning with poisoned images, labelled as `control_class`."
    )
    control_accuracy: Proportion = Field(description="Clean accuracy after that.")


class Durability(_Part):
    """What becomes of the sanitized model when it is trained further."""

    epochs: int = Field(ge=1, description="Of each retuning.")
    learning_rate: float = Field(gt=0, description="Of stochastic gradient descent.")
    images: int = Field(ge=1, description="Clean images that it was retuned on.")
    measured_images: int = Field(ge=1, description="Evaluation images of all these figures.")
    accuracy: Proportion = Field(description="Clean accuracy of the sanitized model on them.")
    clean_accuracy: Proportion = Field(description="After retuning on the clean images.")
    probes: list[ProbeDurability]
    seconds: float = Field(ge=0, description="Of all retunings, measuring included.")


class CarriedTrigger(_Part):
    """Images of one class, among the clean ones, that carry a trigger to it."""

    target_class: int
    images: int = Field(ge=0, description="Of that class, that the model gets right.")
    left_out: int = Field(ge=1, description="Of these, that were found to carry it.")
    names: list[Told] = Field(description="What some of them are called, 100 at most.")
    separation: float = Field(
        ge=0,
        description="How far they lie from the others in the model's features, in standard "
        "deviations within both.",
    )
    carried: Proportion = Field(
        description="Of images of other classes, the share that goes to this class once the "
        "difference between the mean pictures of those left out and of the rest of the class is "
        "added."
    )
    traced: "Traced | None" = Field(
        default=None,
        description="What the difference does before and after. Null in reports of older versions, "
        "and where there is no image to try it on.",
    )


class Traced(_Part):
    """What a trace leads to its class, of the images of other classes that are measured on.

    The trace is the mean picture of the images of a class that were left out, less that of the
    others; it is added. Images that the model takes for the class anyway are not counted.
    """

    before: Proportion = Field(description="By the model as it came.")
    after: Proportion = Field(description="By the sanitized model.")
    control: Proportion = Field(
        description="By the sanitized model, with a difference as large between two halves of the "
        "images that were kept: what any such picture leads there."
    )


class Screening(_Part):
    """What a look at the clean images, for such as carry a trigger, brought to light."""

    images: int = Field(ge=0, description="That were looked at.")
    left_out: int = Field(ge=0, description="Of these; nothing was trained on them.")
    held_out: int = Field(
        ge=0,
        description="Left out as well, of the images kept apart for measuring where no evaluation "
        "data came.",
    )
    classes: list[CarriedTrigger]
    seconds: float = Field(ge=0)


class MisleadingTrigger(_Part):
    """A trigger that a search found the model as it came to fall for.

    Models without a backdoor fall for some, too. Strong gratings lead clean models of CIFAR-10 to
    the frogs, and patches and warps most of what a clean model of 8 x 8 digits sees; see
    docs/results/seek.md.
    """

    kind: str = Field(
        description="A grating, a veil (a tint or a smooth picture), a patch or a warp."
    )
    target_class: int
    before: Proportion = Field(
        description="Of evaluation images of other classes, those that it led to the class."
    )
    after: Proportion = Field(description="Likewise, in the sanitized model.")
    speaks_from: float | None = Field(
        default=None,
        description="The rate before from which on it speaks for a backdoor, for images of such a "
        "size, so many classes and what triggers of its kind to other classes reach. Null: never, "
        "by its kind or for want of images or of classes.",
    )

    @property
    def tells(self) -> bool:
        """Whether the model as it came fell for it as models without a backdoor hardly do."""
        if self.speaks_from is None:
            return False
        return self.before.total >= LEAST_TOLD and self.before.value >= self.speaks_from

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_report(cls, data: Any) -> Any:
        if isinstance(data, dict) and "speaks_from" not in data:
            return {**data, "speaks_from": RATES_OF_OLDER_REPORTS.get(data.get("kind", ""))}
        return data

    @property
    def still_leads(self) -> bool:
        """Whether it tells, and leads half as many in the sanitized model."""
        return self.tells and self.after.value >= STILL_LED * self.before.value


class ModelFile(_Part):
    """A model file."""

    filename: Told
    format: Literal["safetensors", "pytorch"]
    sha256: str
    bytes: int


class ModelRecord(_Part):
    """What the suspect model was found to be."""

    architecture: str
    detected: bool = Field(description="Whether the architecture was found from the weights.")
    num_classes: int
    input_size: tuple[int, int] = Field(description="Height and width, pixels.")
    channels: int
    mean: list[float]
    std: list[float]
    parameters: int
    taps: list[str] = Field(description="Modules whose outputs are aligned.")
    dropped_entries: list[Told] = Field(
        description="Entries of the uploaded file beside the weights; the result has none of them."
    )


class DataRecord(_Part):
    """Images that were used."""

    images: int
    images_available: int
    per_class: list[int]
    seed: int | None = None
    source: Literal["given", "held_out"] = Field(
        description="`held_out`: no evaluation data came, so part of the clean images was kept "
        "apart for it and not trained on."
    )


class EpochRecord(_Part):
    """Figures of one epoch."""

    epoch: int
    values: dict[str, float]


class StageRecord(_Part):
    """One stage of the run."""

    stage: str
    seconds: float
    epochs: list[EpochRecord] = Field(default_factory=list)
    values: dict[str, float] = Field(
        default_factory=dict,
        description="Of a stage without epochs, such as pruning: what it did, in figures.",
    )


class StageSpeed(_Part):
    """How fast one stage was."""

    stage: str
    images: int = Field(ge=0, description="That went through the network, with repetitions.")
    seconds: float = Field(ge=0)
    images_per_second: float | None = Field(ge=0, description="Null: it took no time to speak of.")
    macs_per_second: float | None = Field(
        ge=0,
        description="Multiply-accumulates of the network's layers, as the architecture has them: "
        "a training step counts as 3 forward passes, one of distillation as 4. Null: as above.",
    )


class Cost(_Part):
    """What the run took of the machine."""

    device: Literal["cpu", "cuda"]
    processor: str = Field(description="What computed, as it calls itself.")
    threads: int = Field(ge=1, description="Of the CPU.")
    start_seconds: float = Field(
        ge=0, description="From the start of the process until it began to load; most is torch."
    )
    curve_images: int = Field(ge=0, description="Measured after each epoch.")
    curve_seconds: float = Field(ge=0, description="Spent on that, over all epochs.")
    peak_host_bytes: int = Field(
        ge=0, description="Most memory that the process had resident, mapped images included."
    )
    peak_device_bytes: int | None = Field(
        ge=0, description="Most memory that was reserved on the CUDA device. Null: none was used."
    )
    forward_macs: int = Field(
        ge=0, description="Multiply-accumulates of one forward pass of one image."
    )
    speeds: list[StageSpeed]


class WarningRecord(_Part):
    """Something a person should know."""

    code: str = Field(description="Stable and machine-readable; those of `JobWarning`.")
    message: Told


class Decision(_Part):
    """The verdict, and why."""

    verdict: Verdict
    reasons: list[str]


class Report(_Part):
    """All a run has to say."""

    schema_version: Literal["1"] = "1"
    model: ModelRecord
    input: ModelFile
    output: ModelFile
    clean_data: DataRecord
    evaluation_data: DataRecord
    class_names: list[Told] = Field(
        default_factory=list,
        fail_fast=True,
        max_length=1_000_000,
        description="By class number, as the evaluation data has them; none in reports of versions "
        "that did not tell.",
    )
    method: dict[str, Any] = Field(description="Every setting as it was used.")
    seed: int
    device: str
    precision: str = Field(
        default="float32",
        description="What the networks computed in while they were trained. Figures "
        "are those of float32.",
    )
    devices: int = Field(default=1, ge=1, description="How many of them shared the run.")
    versions: dict[str, str]
    before: Evaluation
    after: Evaluation
    der: dict[str, float] = Field(
        description="Defense effectiveness rating by probe: "
        "(1 + max(0, drop in ASR) - max(0, drop in ACC)) / 2."
    )
    decision: Decision
    inspections: Inspections | None = Field(
        default=None, description="Null: the request did not ask for a search."
    )
    tries: list[Try] | None = Field(
        default=None, description="Of method `auto`, in their order; null with any other."
    )
    screening: Screening | None = Field(
        default=None,
        description="Null: the request did not want it, the model seems to expect other images "
        "(warning `preparation_suspected` or `class_order_suspected`), or an older version ran.",
    )
    misleading: list[MisleadingTrigger] | None = Field(
        default=None,
        description="What the model was trained against beside random triggers; null: nobody "
        "searched for such.",
    )
    durability: Durability | None = Field(
        default=None,
        description="Null: the request did not ask for it, or the retuning diverged, which a "
        "warning tells.",
    )
    stages: list[StageRecord]
    warnings: list[WarningRecord]
    seconds: float
    resumed: int = Field(ge=0, description="How many times the run was taken up again.")
    cost: Cost | None = Field(
        default=None, description="Null in reports of versions that did not measure it."
    )
