"""What a job asks for: the specification of a run, one config per method, and their presets.

Torch-free. The service validates requests with the very models the child runs, so a job that was
accepted can be read by the child.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from enum import StrEnum
from math import cos, pi
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

MAX_PROBES = 8
MAX_PICTURE_BYTES = 1 << 20
MAX_GENERATOR_BYTES = 1 << 16
MAX_SIDE = 2048
"""Of images, pixels."""
MAX_MEMBERS = 100
"""Of an object; none here has half as many. Each unknown one is an error of its own, and who sends
a million must not get a million."""


class Strict(BaseModel):
    """Refuses unknown fields, NaN and the infinities, and is immutable.

    Lists in it end at their first item that is wrong (`fail_fast`), so that no request, however
    large, makes more than a handful of errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_members(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and len(given) > MAX_MEMBERS:
            raise ValueError(f"at most {MAX_MEMBERS} members are expected, got {len(given)}")
        return given

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_fields(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Says of a field that is not there which ones are."""
        try:
            return validate(given)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False)
            if not any(_is_unknown_member(fault) for fault in faults):
                raise
            raise ValidationError.from_exception_data(
                error.title, [cls._with_fields_named(fault) for fault in faults]
            ) from None

    @classmethod
    def _with_fields_named(cls, fault: ErrorDetails) -> InitErrorDetails:
        said = fault["msg"]
        if _is_unknown_member(fault):
            said = f"there is no such field; {cls._meant(str(fault['loc'][0]))}"
        # Under its own type with its own words, whatever kind of error it was.
        kind = PydanticCustomError(fault["type"], said)
        return InitErrorDetails(type=kind, loc=fault["loc"], input=fault["input"])

    @classmethod
    def _meant(cls, name: str) -> str:
        within = [
            f"{field}.{name}"
            for field, info in cls.model_fields.items()
            if any(name in model.model_fields for model in _models_in(info.annotation))
        ]
        near = within or get_close_matches(name, cls.model_fields, n=3, cutoff=0.7)
        if near:
            return f"did you mean {' or '.join(near)}?"
        return f"there are {', '.join(cls.model_fields)}"


def _is_unknown_member(fault: ErrorDetails) -> bool:
    return fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field may hold by itself: lists of them left out."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _models_in(part)


# --- Probes: triggers that are measured, never trained on ----------------------------------------


def _with_kind(schema: dict[str, Any]) -> None:
    """The kind has a default for Python; in JSON it is what tells which probe it is."""
    schema["required"] = ["kind", *schema.get("required", [])]


class _Probe(Strict):
    model_config = ConfigDict(json_schema_extra=_with_kind)

    name: str = Field(
        default="trigger",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$",
        description="What metrics call it: `asr.<name>`, `ra.<name>`.",
    )
    target_class: int = Field(ge=0, description="The class the trigger is said to lead to.")


PixelValue = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[list[PixelValue], Field(min_length=3, max_length=3, fail_fast=True)]
Row = Annotated[list[PixelValue], Field(max_length=MAX_SIDE, fail_fast=True)]
ColorRow = Annotated[list[Color], Field(max_length=MAX_SIDE, fail_fast=True)]


class PatchProbe(_Probe):
    """A patch of fixed pixels at a fixed place, as in BadNets (arXiv 1708.06733)."""

    kind: Literal["patch"] = "patch"
    row: int = Field(
        description="Top row of the patch in the model's input; negative: from the bottom."
    )
    column: int = Field(
        description="Left column of the patch in the model's input; negative: from the right."
    )
    pixels: (
        Annotated[list[Row], Field(min_length=1, max_length=MAX_SIDE, fail_fast=True)]
        | Annotated[list[ColorRow], Field(min_length=1, max_length=MAX_SIDE, fail_fast=True)]
    ) = Field(
        description="Rows of values 0 to 255, used on every channel, or rows of [red, green, blue]."
    )

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        widths = {len(row) for row in self.pixels}
        if len(widths) != 1 or 0 in widths:
            raise ValueError("pixels must be rows of one and the same length, at least one long")
        return self


class BlendProbe(_Probe):
    """A picture mixed into the image: (1 - alpha) image + alpha picture (arXiv 1712.05526)."""

    kind: Literal["blend"] = "blend"
    alpha: float = Field(default=0.2, gt=0, le=1)
    picture_base64: Base64Bytes | None = Field(
        default=None,
        max_length=MAX_PICTURE_BYTES,
        description="A PNG of the model's input size. Without it: uniform noise from `noise_seed`.",
    )
    noise_seed: int = Field(default=0, ge=0, lt=2**63)


class SinusoidProbe(_Probe):
    """A sinusoid over the columns, amplitude * sin(2 pi column frequency / width), is added.

    As in SIG (arXiv 1902.11237).
    """

    kind: Literal["sinusoid"] = "sinusoid"
    amplitude: float = Field(default=20, gt=0, le=255, description="In pixel values.")
    frequency: float = Field(default=6, gt=0, description="Periods over the width of the image.")


class ImageMaskProbe(_Probe):
    """A picture and a mask in one RGBA PNG: alpha says how much of the picture is put on."""

    kind: Literal["image_mask"] = "image_mask"
    picture_base64: Base64Bytes = Field(
        max_length=MAX_PICTURE_BYTES,
        description="An RGBA PNG of the model's input size; alpha 255 replaces the pixel, 0 "
        "keeps it.",
    )


Shift = Annotated[float, Field(ge=-64, le=64)]
Shifts = Annotated[
    tuple[Annotated[tuple[Shift, Shift], Field(fail_fast=True)], ...],
    Field(min_length=2, max_length=64, fail_fast=True),
]


class WarpProbe(_Probe):
    """The image is bent along a smooth field of shifts, as in WaNet (arXiv 2102.10369).

    A coarse grid of shifts is stretched over the image (bicubic, corners on corners). A pixel comes
    from where it is plus strength * shift * (side - 1) / (2 side) pixels on each axis, side being
    the image's on that axis (the paper's equation 5 in pixels), interpolated linearly.
    """

    kind: Literal["warp"] = "warp"
    strength: float = Field(default=0.5, gt=0, le=64, description="The paper's s.")
    grid: int = Field(default=4, ge=2, le=64, description="Side of the coarse grid, the paper's k.")
    field_seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Of the shifts where none are given: uniform, then scaled to a mean size of 1.",
    )
    shifts: (
        Annotated[tuple[Shifts, ...], Field(min_length=2, max_length=64, fail_fast=True)] | None
    ) = Field(
        default=None,
        description="Rows of [down, right], taken as they are, instead of drawn ones. `grid` and "
        "`field_seed` then say nothing.",
    )

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if self.shifts is not None and len({len(row) for row in self.shifts}) != 1:
            raise ValueError("shifts must be rows of one and the same length")
        return self


class ReflectionProbe(_Probe):
    """A picture as a window pane would reflect it is added: image + weight * picture.

    As in Refool (arXiv 2007.02343); blur and ghost are in the picture already. Of several pictures
    an image gets the one whose place, from 0, is the sum of the image's pixel values modulo their
    number.
    """

    kind: Literal["reflection"] = "reflection"
    weight: float = Field(default=0.5, gt=0, le=1)
    pictures_base64: Annotated[
        tuple[Annotated[Base64Bytes, Field(max_length=MAX_PICTURE_BYTES)], ...],
        Field(min_length=1, max_length=8, fail_fast=True),
    ] = Field(description="PNGs of the model's input size.")


class InputAwareProbe(_Probe):
    """Each image gets a trigger of its own, which a small network makes out of it.

    As in the input-aware dynamic backdoor attack (arXiv 2010.08138): image (1 - mask) + pattern
    mask, mask and pattern being functions of the image.
    """

    kind: Literal["input_aware"] = "input_aware"
    generator_base64: Base64Bytes = Field(
        max_length=MAX_GENERATOR_BYTES,
        description="Weights of the network, a safetensors file of int16 tensors in units of "
        "1/4096. For images of c channels: `mask.0.weight` [16, c, 3, 3], `mask.1.weight` and "
        "`mask.2.weight` [16, 16, 3, 3], `mask.3.weight` [8, 16, 3, 3], `mask.4.weight` "
        "[1, 8, 3, 3], a `bias` with each; the same of `pattern`, whose last layer gives c "
        "channels.",
    )


Probe = Annotated[
    PatchProbe
    | BlendProbe
    | SinusoidProbe
    | ImageMaskProbe
    | WarpProbe
    | ReflectionProbe
    | InputAwareProbe,
    Field(discriminator="kind"),
]


# --- Methods -------------------------------------------------------------------------------------


class Phase(Strict):
    """Epochs at one learning rate."""

    epochs: int = Field(ge=1, le=1000)
    learning_rate: float = Field(gt=0, le=10)


_PAPER_PHASES = (
    Phase(epochs=3, learning_rate=0.1),
    Phase(epochs=3, learning_rate=0.01),
    Phase(epochs=4, learning_rate=0.001),
)


def _without_defaults(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)


class _BelowPreset(Strict):
    """Part of a method's settings: what is left out is as the method's preset has it.

    So its JSON schema has no defaults: clients that are made from it would send them all, which
    would take the place of the preset's.
    """

    model_config = ConfigDict(json_schema_extra=_without_defaults)


class Training(_BelowPreset):
    """How a network is trained, over augmented clean images. What a request leaves out is as the
    preset of the method has it.

    The defaults are those of the published result (arXiv 2204.09975, section 4.1, and its code).
    """

    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=100, fail_fast=True)] = (
        _PAPER_PHASES
    )
    least_epoch_images: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="An epoch has so many images at least: fewer are gone through more than once, "
        "each time in another order and changed in another way. 0: an epoch goes through all "
        "images once.",
    )
    batch_size: int = Field(default=64, ge=2, le=8192)
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="`sgd` has Nesterov momentum; `adam` takes it as its beta_1."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    crop_padding: int = Field(default=4, ge=0, le=64, description="Pixels; 0: no random crop.")
    horizontal_flip: bool = Field(
        default=True, description="Off for images where left is not right, such as digits."
    )
    cutout_size: int = Field(
        default=3, ge=0, le=512, description="Side of one square hole, pixels; 0: none."
    )
    fit_augmentation: bool = Field(
        default=False,
        description="Whether mirrored images are left out, and crops made smaller, where the model "
        "as it came does not know its images any more once they are changed so.",
    )
    easy_batch_size: int | None = Field(
        default=None,
        ge=2,
        le=8192,
        description="Takes the place of `batch_size` where the task is easy: the model as it came "
        "gets 95% of the clean images right. More steps remove more, and such a model loses less "
        "by them than by fewer. Null: it does not.",
    )

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def epoch_images(self, images: int) -> int:
        """How many images an epoch has, of a set of so many."""
        return max(images, self.least_epoch_images)

    def scaled(self, factor: float) -> Self:
        """The same with other learning rates."""
        phases = tuple(
            phase.model_copy(update={"learning_rate": factor * phase.learning_rate})
            for phase in self.phases
        )
        return self.model_copy(update={"phases": phases})

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase.learning_rate
            epoch -= phase.epochs
        return self.phases[-1].learning_rate


class Preset(StrEnum):
    """Named sets of values; fields given beside it replace the preset's."""

    DEFAULT = "default"
    PAPER = "paper"
    FAST = "fast"


def _as_presets_have_it(schema: dict[str, Any], config: type[BaseModel]) -> None:
    """Leaves out the defaults that a preset changes: sent along with it they would undo that."""
    name = config.model_fields["name"].default
    schema["required"] = ["name", *schema.get("required", [])]
    for (method, _), values in PRESETS.items():
        # `auto` has settings of other methods below their names.
        for field in values if method == name else values.get(name, ()):
            schema["properties"][field].pop("default", None)


class _Method(Strict):
    model_config = ConfigDict(json_schema_extra=_as_presets_have_it)

    preset: Preset

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, given: Any) -> Any:
        """Lays what was given over the preset, so that one nested field can be changed alone."""
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        name = values.get("name", cls.model_fields["name"].default)
        preset = values.get("preset", cls.model_fields["preset"].default)
        chosen = PRESETS.get((str(name), str(preset)), {})
        return _overlay(chosen, values)


class _Published(_Method):
    preset: Literal[Preset.PAPER, Preset.FAST] = Field(
        default=Preset.PAPER,
        description="Where the values come from that the request does not give. `paper`: the "
        "settings of the published result. `fast`: the same learning rates for fewer epochs, less "
        "than half of the work.",
    )


class _AsPublished(_Method):
    preset: Literal[Preset.PAPER] = Field(
        default=Preset.PAPER, description="The settings of the published result."
    )


class FinetuneConfig(_Published):
    """Plain fine-tuning of the suspect model on the clean images."""

    name: Literal["finetune"] = "finetune"
    training: Training = Training()


class NadConfig(_Published):
    """Neural attention distillation: attention maps of student and teacher are aligned.

    ICLR 2021, arXiv 2101.05930. Preset `paper` is how the authors of ARGD (arXiv 2204.09975) ran it
    again. NAD's own code trains the student for 20 epochs, 2 at a learning rate of 0.1 and 18 at
    0.01, with node weights 0, 0 and 5000.
    """

    name: Literal["nad"] = "nad"
    teacher: Training = Training()
    student: Training = Training()
    node_weights: Annotated[tuple[float, ...], Field(max_length=32, fail_fast=True)] | None = Field(
        default=None,
        description="One weight per tap. Null: 500, 1000, 1000 for three taps, otherwise "
        "that profile "
        "stretched over the taps.",
    )


class Hardening(_BelowPreset):
    """What a network is made to bear while it is trained. The defaults are none of it."""

    rho: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="How far the weights are moved to where they are worse before each step, in "
        "multiples of themselves (adaptive sharpness-aware minimisation, arXiv 2102.11600). 0: not "
        "at all; otherwise a step costs twice as much, or less by `ascent_share`.",
    )
    ascent_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Of each batch's images, those by which it is found where weights are worse "
        "(`rho`). A step costs the less; an epoch's figures, and the statistics of batch norms, "
        "are of these.",
    )
    least_ascent_images: int = Field(
        default=32, ge=2, description="By so many at least, whatever `ascent_share` says."
    )
    perturbation: float = Field(
        default=0.0,
        ge=0,
        le=255,
        description="Root mean square, in pixel values, of the one perturbation of all images that "
        "is sought while training, and trained against. 0: none.",
    )
    perturbed_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Of each batch's images, those that are trained on once more with the "
        "perturbation or a random trigger on them.",
    )
    perturbed_weight: float = Field(
        default=0.25, ge=0, le=100, description="Of their cross-entropy, beside that of all."
    )
    random_triggers: bool = Field(
        default=False,
        description="Whether a trigger drawn at random is put on each of these images: a grating, "
        "noise or a picture blended in, a reflection, a patch or a warp. They keep their labels, "
        "so that the network learns to pass over such things.",
    )
    found_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Of random triggers, the share that is near to those that lead the suspect "
        "model the same way with most images; they are searched for before it is trained. 0: "
        "nobody searches.",
    )
    trigger_candidates: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Random triggers that are drawn for each of these images, of which the one is "
        "put on that leads the suspect model farthest to where such triggers lead it. Each is a "
        "forward pass of these images. 1: the first that comes.",
    )

    @property
    def chooses(self) -> bool:
        """Whether the suspect model is asked which of several random triggers misleads it."""
        return self.random_triggers and self.trigger_candidates > 1

    @property
    def searches(self) -> bool:
        """Whether it takes a search for triggers that the suspect model falls for."""
        return self.random_triggers and self.found_share > 0

    @property
    def perturbs(self) -> bool:
        """Whether some images are trained on once more, changed."""
        return bool(self.perturbation or self.random_triggers)

    @property
    def is_on(self) -> bool:
        """Whether there is anything to bear."""
        return bool(self.rho) or self.perturbs


ONE_CYCLE_RISE = 0.3
"""Share of the training in which the learning rate rises."""


def _one_cycle(learning_rate: float, epochs: int) -> tuple[Mapping[str, Any], ...]:
    """A learning rate for each epoch: up over the first third, then down along half a cosine.

    One cycle, as in arXiv 1708.07120.
    """

    def share(done: float) -> float:
        if done < ONE_CYCLE_RISE:
            return 0.04 + 0.96 * done / ONE_CYCLE_RISE
        return (1 + cos(pi * (done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))) / 2

    return tuple(
        {
            "epochs": 1,
            "learning_rate": float(f"{learning_rate * share((epoch + 0.5) / epochs):.3g}"),
        }
        for epoch in range(epochs)
    )


_DEFAULT_TEACHER: Mapping[str, Any] = {
    "phases": _one_cycle(0.02, 7),
    "least_epoch_images": 2500,
    "batch_size": 256,
    "weight_decay": 5e-4,
    "cutout_size": 0,
    "fit_augmentation": True,
    "easy_batch_size": 64,
}
_DEFAULT_STUDENT: Mapping[str, Any] = {
    **_DEFAULT_TEACHER,
    # Down only: it starts where the teacher stopped.
    "phases": ({"epochs": 1, "learning_rate": 0.0085}, {"epochs": 1, "learning_rate": 0.0015}),
}
_DEFAULT_HARDENING: Mapping[str, Any] = {
    "rho": 2.0,
    "ascent_share": 0.25,
    "perturbed_share": 0.375,
    "perturbed_weight": 0.5,
    "random_triggers": True,
    "found_share": 0.5,
    "trigger_candidates": 4,
}
_DEFAULT_STUDENT_HARDENING = _DEFAULT_HARDENING


class ArgdConfig(_Method):
    """Attention relation graph distillation: attention maps, their distances and their embedded
    relations are aligned.

    IJCAI 2022, arXiv 2204.09975.
    """

    name: Literal["argd"] = "argd"
    preset: Preset = Field(
        default=Preset.DEFAULT,
        description="Where the values come from that the request does not give. `default`: keeps "
        "more accuracy than the published settings, at learning rates that alone leave backdoors: "
        "both networks are hardened while they are trained, and what comes out goes some of the "
        "way back to the suspect model. `paper`: the settings of the published result. `fast`: a "
        "recipe like the default's without `rho`, without a search and without going back, in "
        "fewer epochs, less than half of the work.",
    )
    teacher: Training = Training.model_validate(_DEFAULT_TEACHER)
    student: Training = Training.model_validate(_DEFAULT_STUDENT)
    node_weights: Annotated[tuple[float, ...], Field(max_length=32, fail_fast=True)] | None = Field(
        default=None,
        description="One weight per tap. Null: 2000, 5000, 2000 for three taps, otherwise "
        "that profile "
        "stretched over the taps.",
    )
    node_scale: float = Field(
        default=0.1, ge=0, le=1000, description="What the node weights are multiplied with."
    )
    edge_weight: float = Field(default=1.0, ge=0)
    embedding_weight: float = Field(default=1.0, ge=0)
    embedding_dim: int = Field(default=128, ge=1, le=4096)
    taps: (
        Annotated[
            tuple[Annotated[int, Field(ge=0, le=1000)], ...],
            Field(min_length=1, max_length=32, fail_fast=True),
        ]
        | None
    ) = Field(
        default=None,
        description="Which of the model's taps are the nodes, by their place in the forward pass "
        "from 0. Null: all.",
    )
    projections: Literal["random", "trained"] = Field(
        default="random",
        description="Of the embedding. `random`: as drawn, never changed, as in the authors' "
        "code. `trained`: with the student, as the paper's text reads.",
    )
    student_from: Literal["suspect", "teacher"] = Field(
        default="teacher", description="Which model's weights the student starts with."
    )
    hardening: Hardening = Field(
        default=Hardening.model_validate(_DEFAULT_HARDENING),
        description="Of the teacher, while it is trained.",
    )
    student_hardening: Hardening = Field(
        default=Hardening.model_validate(_DEFAULT_STUDENT_HARDENING), description="Of the student."
    )
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of each label that is spread over all classes while they are trained.",
    )
    classifier_shift: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="How strongly the teacher's classifier is pushed away from the suspect "
        "model's, after it was drawn anew: the weight of the inner product of both (feature shift "
        "tuning, NeurIPS 2023, arXiv 2310.01875). 0: it stays and is trained like the rest. Needs "
        "a classifier that fine_pruning finds too.",
    )
    back_off: bool = Field(
        default=True,
        description="Whether a training that loses the model's accuracy instead of keeping it, as "
        "networks without batch norm do at these learning rates, is begun again with learning "
        "rates and `rho` at a quarter, three times at most in all.",
    )
    suspect_share: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="How far the trained student's weights go back to the suspect model's at most, "
        "of the whole way: on it accuracy comes back before a backdoor does (arXiv 2109.01903). "
        "With a `classifier_shift` they do not, since the classifier is another, nor where no "
        "trigger was searched for (`found_share`), nor where the suspect model gets 95% of the "
        "evaluation images right: there is little to have back.",
    )
    most_regained: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="They go back only as far as no trigger that the suspect model was found to "
        "fall for (`found_share`) leads to its class with a mean probability that is more than "
        "this over what it was.",
    )

    @property
    def goes_back(self) -> bool:
        """Whether the student's weights go back towards the suspect model's."""
        return self.suspect_share > 0 and self.searches and not self.classifier_shift

    @property
    def asks_suspect(self) -> bool:
        """Whether the suspect model is needed after others were trained, or while they are."""
        return self.hardening.chooses or self.student_hardening.chooses or self.goes_back

    @property
    def searches(self) -> bool:
        """Whether the suspect model is searched for triggers that it falls for."""
        return self.hardening.searches or self.student_hardening.searches

    @field_validator("taps")
    @classmethod
    def _each_once(cls, taps: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if taps is not None and len(set(taps)) != len(taps):
            raise ValueError("taps must be different from each other")
        return taps


class FinePruningConfig(_Published):
    """Fine-pruning: channels that are idle on clean images are taken away as far as the clean
    accuracy bears it, then the model is fine-tuned.

    RAID 2018, arXiv 1805.12185.
    """

    name: Literal["fine_pruning"] = "fine_pruning"
    tolerance: float = Field(
        default=0.04,
        ge=0,
        le=1,
        description="Share by which the accuracy on a tenth of the clean images, on all where they "
        "are fewer than 1,000, may fall while channels are taken away.",
    )
    training: Training = Field(
        default=Training(), description="Of the fine-tuning; the same as that of `finetune`."
    )


_MASK_TRAINING: Mapping[str, Any] = {
    "phases": ({"epochs": 100, "learning_rate": 0.2},),
    "batch_size": 128,
    "weight_decay": 0.0,
    "cutout_size": 0,
}


class AnpConfig(_AsPublished):
    """Adversarial neuron pruning: masks on the channels are trained to keep the clean images right
    while the channels are perturbed for the worst, and channels with a small mask are taken away.

    NeurIPS 2021, arXiv 2110.14430. For networks of convolutions.
    """

    name: Literal["anp"] = "anp"
    mask_training: Training = Field(
        default=Training.model_validate(_MASK_TRAINING),
        description="Of the masks alone. The paper has 2,000 steps of 128 images: 100 epochs of "
        "2,500 images, 500 of 500.",
    )
    perturbation: float = Field(
        default=0.4,
        ge=0,
        le=10,
        description="The paper's epsilon: how far, relative to themselves, weights and biases of a "
        "channel are perturbed.",
    )
    clean_weight: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="The paper's alpha: the weight of the loss without a perturbation; the loss "
        "with it has the rest.",
    )
    threshold: float = Field(
        default=0.2, ge=0, le=1, description="Channels with a mask below are taken away."
    )
    max_accuracy_drop: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="A guard that the paper has not: fewer channels go where the accuracy on a "
        "tenth of the clean images, on all where they are fewer than 1,000, would fall by more "
        "than this share. 1: none.",
    )


class ClpConfig(_AsPublished):
    """Channel Lipschitz pruning: channels that react far more strongly than the others of their
    layer are taken away. Looks at the weights alone; the clean images are only measured on.

    ECCV 2022, arXiv 2208.03111. For networks of convolutions.
    """

    name: Literal["clp"] = "clp"
    deviations: float = Field(
        default=3.0,
        ge=0,
        le=100,
        description="The paper's u: a channel goes when its bound lies more than this many "
        "standard deviations above the mean of its layer. The paper has 3 for CIFAR-10 and 5 for "
        "Tiny ImageNet.",
    )


def _cosine(learning_rate: float, epochs: int) -> tuple[Mapping[str, Any], ...]:
    """Ten phases that follow half a cosine from a learning rate down to 0."""
    return tuple(
        {
            "epochs": epochs // 10,
            "learning_rate": round(learning_rate * (1 + cos(pi * (part + 0.5) / 10)) / 2, 6),
        }
        for part in range(10)
    )


_FT_SAM: Mapping[str, Any] = {
    "phases": _cosine(0.01, 100),
    "batch_size": 256,
    "weight_decay": 5e-4,
    "cutout_size": 0,
}


class FtSamConfig(_Published):
    """Fine-tuning with adaptive sharpness-aware minimisation: each step descends by the gradient at
    nearby weights that are worse.

    ICCV 2023, arXiv 2304.11823, after ASAM, arXiv 2102.11600. The paper's settings for CIFAR-10 are
    rho 2, batches of 256 and 100 epochs at a learning rate of 0.01; its code adds weight decay
    0.0005, label smoothing and a cosine schedule, followed here in ten phases.
    """

    name: Literal["ft_sam"] = "ft_sam"
    training: Training = Training.model_validate(_FT_SAM)
    rho: float = Field(
        default=2.0,
        gt=0,
        le=100,
        description="How far the weights are moved to where they are worse, in multiples of "
        "themselves. The paper's: 2 for CIFAR-10, 8 for GTSRB and Tiny ImageNet.",
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)


_I_BAU: Mapping[str, Any] = {
    "phases": ({"epochs": 5, "learning_rate": 0.001},),
    "batch_size": 100,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "crop_padding": 0,
    "horizontal_flip": False,
    "cutout_size": 0,
}


class IBauConfig(_AsPublished):
    """Implicit backdoor adversarial unlearning: the model is trained against the one perturbation
    of all images that misleads it most, with regard to how that perturbation would change.

    ICLR 2022, arXiv 2110.03735. The settings are those of its code.
    """

    name: Literal["i_bau"] = "i_bau"
    training: Training = Field(
        default=Training.model_validate(_I_BAU),
        description="Of the model. An epoch is a round: the perturbation is made anew, over all "
        "clean images, before it.",
    )
    fixed_point_steps: int = Field(
        default=5,
        ge=1,
        le=20,
        description="The paper's K: how well the perturbation's own change is solved for.",
    )
    fixed_point_rate: float = Field(
        default=0.1, gt=0, le=10, description="Of the map whose fixed point the perturbation is."
    )
    perturbation_rate: float = Field(
        default=10.0, gt=0, le=1000, description="Learning rate of the perturbation."
    )
    perturbation_penalty: float = Field(
        default=0.001, ge=0, le=1, description="Weight of the perturbation's squared L2 norm."
    )
    perturbation_bound: float | None = Field(
        default=10.0,
        gt=0,
        description="Its L2 norm at most, for pixels in [0, 1]. Null: none, as in the code, which "
        "has the paper's bound, at 10, switched off.",
    )
    perturbed_share: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Of the images that the model is trained on; at least one of each batch.",
    )


_FST: Mapping[str, Any] = {
    # torch's CosineAnnealingLR over the ten epochs.
    "phases": tuple(
        {"epochs": 1, "learning_rate": round(0.01 * (1 + cos(pi * epoch / 10)) / 2, 6)}
        for epoch in range(10)
    ),
    "batch_size": 128,
    "weight_decay": 0.0,
    "cutout_size": 0,
}


class FstConfig(_AsPublished):
    """Feature shift tuning: the classifier is drawn anew and kept away from the suspect model's
    while all of the model is fine-tuned, so that its features have to move.

    NeurIPS 2023, arXiv 2310.01875. For networks with a classifier that fine_pruning finds too. The
    settings are those of its code: ten epochs at learning rates that fall from 0.01 along half a
    cosine, without weight decay.
    """

    name: Literal["fst"] = "fst"
    training: Training = Training.model_validate(_FST)
    alpha: float = Field(
        default=0.2,
        ge=0,
        le=100,
        description="Weight of the inner product of both classifiers. The paper's: 0.2 for "
        "CIFAR-10, 0.1 for GTSRB, 0.001 for CIFAR-100 and Tiny ImageNet.",
    )


def _held_then_down(learning_rate: float, epochs: int) -> tuple[Mapping[str, Any], ...]:
    """Half of the epochs at a learning rate, then a straight line, in two steps, down to 1% of it
    for the last tenth."""
    shares = ((5, 1.0), (2, 0.75), (2, 0.26), (1, 0.01))
    return tuple(
        {"epochs": tenths * epochs // 10, "learning_rate": round(learning_rate * share, 6)}
        for tenths, share in shares
    )


_MCR_ENDPOINT: Mapping[str, Any] = {
    "phases": _held_then_down(0.015, 100),
    "batch_size": 128,
    "cutout_size": 0,
}
_MCR_CURVE: Mapping[str, Any] = {**_MCR_ENDPOINT, "phases": _held_then_down(0.01, 100)}


class McrConfig(_Published):
    """Mode connectivity repair: the suspect model and its fine-tuned self are joined by a curve of
    models that do well on the clean images, and one from the middle is taken.

    ICLR 2020, arXiv 2005.00060. The learning rates are those of its code. IBM has filed for a
    patent on the method: WO2021059106A1.
    """

    name: Literal["mcr"] = "mcr"
    endpoint: Training = Field(
        default=Training.model_validate(_MCR_ENDPOINT),
        description="Of the curve's other end: the suspect model, fine-tuned.",
    )
    curve: Training = Field(
        default=Training.model_validate(_MCR_CURVE), description="Of the curve's bend."
    )
    position: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The paper's t, from 0, the suspect model, to 1, its fine-tuned self. The "
        "middle is where the trained bend weighs most and both ends alike. The paper's points near "
        "an end are for curves between two suspect models, trained apart; here they would be next "
        "to the suspect.",
    )


SingleMethodConfig = (
    FinetuneConfig
    | NadConfig
    | ArgdConfig
    | FinePruningConfig
    | AnpConfig
    | ClpConfig
    | FtSamConfig
    | FstConfig
    | IBauConfig
    | McrConfig
)

_AUTO_FITTED: Mapping[str, Any] = {"training": {"fit_augmentation": True}}
_AUTO_FT_SAM: Mapping[str, Any] = {"preset": "fast", **_AUTO_FITTED}
_AUTO_FST: Mapping[str, Any] = {"alpha": 0.03, **_AUTO_FITTED}


_FAST: Mapping[str, Any] = {
    # Most of the published epochs at the two lower rates change little: benchmarks/engine_speed.py
    # has both presets side by side.
    "phases": (
        {"epochs": 2, "learning_rate": 0.1},
        {"epochs": 1, "learning_rate": 0.01},
        {"epochs": 1, "learning_rate": 0.001},
    )
}

_FAST_HARDENING: Mapping[str, Any] = {"random_triggers": True, "perturbed_weight": 0.5}
"""Without a search for triggers: it would take half as long as the training."""
_FAST_ARGD: Mapping[str, Any] = {
    # docs/decisions/0027: what triggers look like is trained against; worse weights are not.
    "teacher": {**_DEFAULT_TEACHER, "phases": _one_cycle(0.05, 3)},
    "student": {
        **_DEFAULT_TEACHER,
        "phases": tuple({"epochs": 1, "learning_rate": rate} for rate in (0.021, 0.0143, 0.0077)),
    },
    "hardening": _FAST_HARDENING,
    "student_hardening": _FAST_HARDENING,
    # Without a search nobody would know what comes back.
    "suspect_share": 0.0,
}

_PAPER_ARGD: Mapping[str, Any] = {
    # Empty: as `Training` has it.
    "teacher": {},
    "student": {},
    "hardening": {},
    "student_hardening": {},
    "node_scale": 1.0,
    "student_from": "suspect",
    "label_smoothing": 0.0,
    "back_off": False,
    "suspect_share": 0.0,
}

PRESETS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    # `paper` is what the defaults above say; later presets stand here as what they change.
    ("finetune", Preset.PAPER): {},
    ("nad", Preset.PAPER): {},
    ("argd", Preset.PAPER): _PAPER_ARGD,
    ("fine_pruning", Preset.PAPER): {},
    ("anp", Preset.PAPER): {"mask_training": _MASK_TRAINING},
    ("clp", Preset.PAPER): {},
    ("ft_sam", Preset.PAPER): {"training": _FT_SAM},
    ("i_bau", Preset.PAPER): {"training": _I_BAU},
    ("fst", Preset.PAPER): {"training": _FST},
    ("mcr", Preset.PAPER): {"endpoint": _MCR_ENDPOINT, "curve": _MCR_CURVE},
    ("finetune", Preset.FAST): {"training": _FAST},
    ("nad", Preset.FAST): {"teacher": _FAST, "student": _FAST},
    ("argd", Preset.FAST): _FAST_ARGD,
    ("argd", Preset.DEFAULT): {
        "teacher": _DEFAULT_TEACHER,
        "student": _DEFAULT_STUDENT,
        "hardening": _DEFAULT_HARDENING,
        "student_hardening": _DEFAULT_STUDENT_HARDENING,
    },
    ("auto", Preset.DEFAULT): {"ft_sam": _AUTO_FT_SAM, "fst": _AUTO_FST},
    ("fine_pruning", Preset.FAST): {"training": _FAST},
    ("ft_sam", Preset.FAST): {"training": {**_FT_SAM, "phases": _cosine(0.01, 20)}},
    ("mcr", Preset.FAST): {
        "endpoint": {**_MCR_ENDPOINT, "phases": _held_then_down(0.015, 20)},
        "curve": {**_MCR_CURVE, "phases": _held_then_down(0.01, 20)},
    },
}


def _overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, mappings merged key by key."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(below, value) if both else value  # type: ignore[arg-type]  # narrowed by `both`
    return merged


class AutoConfig(_Method):
    """Tries several methods, each on the suspect model, and keeps the one that is best by accuracy
    on clean images held out of the training and by how far changes that are found in the suspect
    model still mislead.

    No trigger of the request is used for the choice, nor an evaluation image.
    """

    name: Literal["auto"] = "auto"
    preset: Literal[Preset.DEFAULT] = Field(
        default=Preset.DEFAULT, description="The settings below."
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        le=1e7,
        description="Time that may pass from the start of the run until the last method is "
        "through. The first is tried in any case; of the others those that would take longer are "
        "left out, which the report says. Null: all are tried.",
    )
    methods: Annotated[
        tuple[Literal["argd", "ft_sam", "fst"], ...],
        Field(min_length=1, max_length=3, fail_fast=True),
    ] = Field(
        default=("argd", "ft_sam", "fst"),
        description="What is tried, in this order. Of two that chance may tell apart the first is "
        "kept.",
    )
    argd: ArgdConfig = Field(default=ArgdConfig(), description="Its settings; likewise below.")
    ft_sam: FtSamConfig = Field(
        default=FtSamConfig.model_validate(_AUTO_FT_SAM),
        description="Keeps the most accuracy on most models.",
    )
    fst: FstConfig = Field(
        default=FstConfig.model_validate(_AUTO_FST),
        description="Removes what the others leave where poisoned images have their right label. "
        "Passed over where a network has no classifier that is known.",
    )

    @field_validator("methods")
    @classmethod
    def _each_once(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        # No two of them have a stage of the same name: figures are told apart by their stage.
        if len(set(methods)) != len(methods):
            raise ValueError(f"each method is tried once, got {', '.join(methods)}")
        return methods

    @property
    def tries(self) -> tuple[SingleMethodConfig, ...]:
        """The methods with their settings, in their order."""
        settings: Mapping[str, SingleMethodConfig]
        settings = {"argd": self.argd, "ft_sam": self.ft_sam, "fst": self.fst}
        return tuple(settings[name] for name in self.methods)


MethodConfig = Annotated[SingleMethodConfig | AutoConfig, Field(discriminator="name")]


# --- Model and data ------------------------------------------------------------------------------


class ModelOptions(Strict):
    """What the file of a model does not say about it."""

    architecture: str = Field(
        default="auto",
        min_length=1,
        max_length=80,
        description="A name of the catalog, such as `wrn-16-1`, `preact_resnet18`, "
        "`resnet50`; or `auto`: "
        "found from the names and shapes of the weights.",
    )
    input_size: (
        tuple[Annotated[int, Field(ge=4, le=MAX_SIDE)], Annotated[int, Field(ge=4, le=MAX_SIDE)]]
        | None
    ) = Field(
        default=None,
        description="Height and width of the input, pixels. Null: the architecture's own.",
    )
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=4, fail_fast=True)] | None = (
        Field(
            default=None,
            description="Per channel, for inputs in [0, 1], subtracted before the network. Null: "
            "nothing is subtracted.",
        )
    )
    std: (
        Annotated[
            tuple[Annotated[float, Field(gt=0)], ...],
            Field(min_length=1, max_length=4, fail_fast=True),
        ]
        | None
    ) = Field(
        default=None,
        description="Per channel, divided by after the mean. Null: nothing is divided.",
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std must have one value per channel each")
        return self


class GivenModelOptions(ModelOptions):
    """`ModelOptions` as somebody gives them; what is stored was given to this or an older one."""

    @field_validator("mean", "std")
    @classmethod
    def _for_inputs_up_to_1(
        cls, values: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        largest = max(values or (0.0,), key=abs)
        if abs(largest) > 1:
            raise ValueError(
                f"{largest:g} came, and inputs are in [0, 1]: expected was a {info.field_name} of "
                "at most 1 per channel. Divide by 255 what is meant for inputs in [0, 255]."
            )
        return values


class ModelSource(GivenModelOptions):
    """The suspect model."""

    path: Path
    filename: str | None = Field(default=None, description="The name people know the file by.")


class DataSource(Strict):
    """Images with their classes: a folder or zip of class folders, an npz, or a parquet file."""

    path: Path
    images: int | None = Field(
        default=None, ge=1, description="Draw this many, stratified by class. Null: all."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the draw.")
    class_names: Annotated[tuple[str, ...], Field(fail_fast=True)] | None = Field(
        default=None,
        description="Folder names in the order of the model's outputs. Null: numbers by "
        "value, other names sorted.",
    )


class Policy(Strict):
    """What the figures must be for the verdict `allowed`. Shares in [0, 1]."""

    max_asr: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Of each probe's attack success rate. One over it that is no more than what "
        "the sanitized model makes of the same images without the trigger, by more than chance, "
        "leaves the model `undecided` instead of `blocked`; so does one within it, of so few "
        "images that even none led would leave open more than this limit and 5%: of fewer than 73 "
        "by default.",
    )
    max_accuracy_drop: float = Field(default=0.03, ge=-1, le=1)
    min_accuracy: float = Field(default=0.0, ge=0, le=1)


class Device(StrEnum):
    """Where a run computes. `auto`: CUDA if there is a device, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """What the networks compute in while they are trained; weights are kept in float32.

    `auto`: bfloat16 where the processor or the device is faster in it, else float32.
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


Seed = Annotated[int, Field(ge=0, lt=2**63)]

Devices = Annotated[
    int,
    Field(
        ge=1,
        le=64,
        description="How many devices of one machine share the run: each batch is split among "
        "them, and the result is that of one device but for rounding. On the CPU these are "
        "processes, which share its threads.",
    ),
]


def check_probe_names(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """Probes are told apart by name.

    Raises:
        ValueError: Two have the same.
    """
    names = [probe.name for probe in probes]
    if len(set(names)) < len(names):
        raise ValueError(f"probes need different names, got {', '.join(names)}")
    return probes


Inspect = Annotated[
    bool,
    Field(
        description="Search the model for triggers before and after, with the clean images alone: "
        "for each class the smallest patch, pattern and shift of features that leads images there. "
        "Gives an estimated ASR by class and pictures of what was found, and takes longer than the "
        "published methods do on a small network.",
    ),
]

ScreenImages = Annotated[
    bool,
    Field(
        description="Look among the clean images for such as carry a trigger, by the features that "
        "the suspect model has of them, and leave them out: trained on, they would teach the "
        "backdoor again. Costs about as much as measuring the clean accuracy on them.",
    ),
]

MeasureDurability = Annotated[
    bool,
    Field(
        description="Train copies of the sanitized model further and tell whether the backdoor "
        "comes back: on the clean images, and, for each probe, on the clean images of which 1% "
        "carry its trigger and its target's label, beside the same with another label. The model "
        "that is delivered is not changed by it.",
    ),
]

Probes = Annotated[tuple[Probe, ...], Field(max_length=MAX_PROBES, fail_fast=True)]


def check_batch_sizes(method: MethodConfig, devices: int) -> None:
    """Each of several devices needs an image of every batch.

    Raises:
        ValueError: A batch is smaller than there are devices.
    """
    for name, training in trainings_of("method", method):
        for key in ("batch_size", "easy_batch_size"):
            if (size := getattr(training, key)) and size < devices:
                raise ValueError(
                    f"{name}.{key} is {size}, and {devices} devices share each batch: ask for no "
                    "more devices than a batch has images"
                )


def trainings_of(name: str, value: BaseModel) -> Iterator[tuple[str, Training]]:
    """All trainings in a config, at any depth, with the place of each below `name`."""
    for key, inner in value:
        if isinstance(inner, Training):
            yield f"{name}.{key}", inner
        elif isinstance(inner, BaseModel):
            yield from trainings_of(f"{name}.{key}", inner)


def augmentation_of(method: BaseModel) -> tuple[int, bool]:
    """The most crop padding that any training of a method asks for, in pixels, and whether any asks
    for mirrored images."""
    trainings = [training for _, training in trainings_of("method", method)]
    padding = max((training.crop_padding for training in trainings), default=0)
    return padding, any(training.horizontal_flip for training in trainings)


def looks_first(method: BaseModel) -> bool:
    """Whether the suspect model is looked at before a method trains anything: at what augmentation
    it bears, or whether its task is easy."""
    padding, flip = augmentation_of(method)
    trainings = trainings_of("method", method)
    return bool(padding or flip) or any(each.easy_batch_size for _, each in trainings)


class SanitizeSpec(Strict):
    """A whole run, as `python -m sanitizer run` reads it."""

    model: ModelSource
    clean_data: DataSource
    evaluation_data: DataSource | None = Field(
        default=None,
        description="What ACC, ASR and RA are measured on. Null: `holdout` of the clean "
        "images is kept apart for it.",
    )
    holdout: float = Field(default=0.2, gt=0, lt=0.9)
    method: MethodConfig = ArgdConfig()
    probes: Probes = ()
    policy: Policy = Policy()
    screen: ScreenImages = True
    inspect: Inspect = False
    durability: MeasureDurability = False
    seed: Seed = 0
    device: Device = Device.AUTO
    devices: Devices = 1
    precision: Precision = Precision.AUTO
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads, of all devices together. Null: torch's own choice.",
    )
    curve_images: int = Field(
        default=1000,
        ge=0,
        description="Evaluation images measured after each epoch, for the curves alone; "
        "nothing is chosen by "
        "them. 0: none.",
    )
    checkpoint_seconds: float = Field(
        default=30, ge=0, description="At most this much work is lost to a kill."
    )

    _probe_names = field_validator("probes")(check_probe_names)

    @model_validator(mode="after")
    def _batches_for_all(self) -> Self:
        check_batch_sizes(self.method, self.devices)
        return self


METHOD_ADAPTER: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)
