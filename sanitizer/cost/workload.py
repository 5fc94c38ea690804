"""What a job has to do, and what doing it took.

Torch-free: the service makes a workload out of a request before the job runs, and out of the report
once it has; the two are what an estimate is made from.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sanitizer.events import Stage
from sanitizer.report.model import Evaluation, Report
from sanitizer.spec import (
    METHOD_ADAPTER,
    AnpConfig,
    ArgdConfig,
    AutoConfig,
    ClpConfig,
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    Hardening,
    IBauConfig,
    McrConfig,
    MethodConfig,
    NadConfig,
    Training,
)

DeviceKind = Literal["cpu", "cuda"]

MAX_COUNT = 2**40
MAX_BYTES = 2**60
MAX_SECONDS = 1e9
"""Reports come out of processes that read strangers' files: what they say stays within reason."""

FINETUNING_PASSES = 3.0
"""A forward pass, and a backward pass that is worth two: gradients of inputs and of weights."""
NAD_PASSES = 4.0
"""And the teacher's forward pass."""
ARGD_PASSES = 4.5
"""And the graphs, by measurement."""
IDLENESS_PASSES = 1.0
"""Each image goes through once: to see what it activates, or to measure on."""
ANP_MASKING_PASSES = 6.0
"""Three forward passes, each with a backward pass that needs gradients of inputs alone."""
ANP_PRUNING_PASSES = 0.5
"""A tenth of the images before and after, and a few times more where the guard holds it back; of
few images all, which is little beside the masks' training."""
CLP_PASSES = 0.01
"""One image goes through the network; the rest is a decomposition of each kernel."""
FT_SAM_PASSES = 2 * FINETUNING_PASSES
"""The gradient at the weights, and the one beside them."""
I_BAU_PASSES, I_BAU_PASSES_PER_STEP = 15.0, 6.0
"""The perturbation, both losses and their gradients; each further step of the fixed point. By
measurement on a CPU: 4 a step for a PreAct-ResNet-18, 8 for a WRN-16-1."""
STATISTICS_PASSES = 1.0
"""Each image goes through once."""

AROUND = frozenset(
    {
        Stage.LOAD,
        Stage.SCREEN,
        Stage.BASELINE,
        Stage.FIT,
        Stage.INSPECT,
        Stage.SEEK,
        Stage.GO_BACK,
        Stage.EVALUATE,
        Stage.CHOOSE,
        Stage.RETUNE,
        Stage.REINSPECT,
        Stage.WRITE,
    }
)
"""The stages that every run may have; what lies between is the method's."""
MEASURING = (
    Stage.SCREEN,
    Stage.BASELINE,
    Stage.FIT,
    Stage.INSPECT,
    Stage.SEEK,
    Stage.GO_BACK,
    Stage.CHOOSE,
    Stage.EVALUATE,
    Stage.REINSPECT,
)
"""Of these, those that put images through a network without training it."""

LOOKED_AT = 1000
"""At most, images that tell which augmentation a model bears: of ten classes each has a hundred."""
EXPECTED_IMAGES = 256
"""At most, that tell whether a model gets its images as it expects them; a test holds it against
`sanitizer.evaluation.expectation`."""

SEARCH_STEPS = 100
"""Of each search for a change that leads to a class, with a batch each."""
SEARCH_BATCH = 32
SEARCH_PASSES = 2.0
"""A forward pass, and a backward pass that needs gradients of inputs alone."""
SEARCH_FAMILIES = 3
MAX_TARGETS = 16
"""Classes that are searched; where there are more, those that misled images fall into most."""
SEEK_KINDS = 4
SEEK_IMAGES = 16
"""That each trigger is put on which the model may fall for."""
SEEK_FIRST = 96
"""Random triggers that the search of a kind begins with."""
SEEK_TARGETS = 10
"""Classes that are searched for, those that the first triggers lead to the most."""
SEEK_PARENTS, SEEK_CHILDREN = 2, 2
"""The best triggers for each class, and what comes of each in every generation."""
SEEK_GENERATIONS = 4
TRIED_IMAGES = 128
"""At most, that each found trigger is tried on when a model goes back towards what it was."""
TRIED_TARGETS = 3
"""Classes of each kind of trigger, the strongest for each."""
TRIED_SHARES = 1.0, 2 / 3, 1 / 3
"""Of the way back that may be gone at most; in turn, until one will do."""
RATED_IMAGES = 500
"""At most, that a change is measured on: of so many a rate is known to 4.4 points."""
HELDOUT_SHARE = 0.1
HELDOUT_IMAGES = 1000
"""At most, about, that a method chooses by: of so many the accuracy is known to 3 points at worst,
and each look costs."""

RETUNING_EPOCHS = 3
RETUNING_RATE = 0.01
"""A user's own brief fine-tuning: long enough for what is only hidden to come back within a few
epochs (Min et al., arXiv 2410.09838), at the middle rate of the published phases, which moves a
network without making it another one."""
RETUNING_BATCH = 64
RETUNING_WEIGHT_DECAY = 5e-4
"""What networks of this kind are usually trained with on small images."""
RETUNING_POISONED = 0.01
"""Share of the clean images that carry the trigger in a poisoned retuning."""
RETUNED_IMAGES = 2000
"""At most, that retuned copies are measured on: of so many a rate is known to 2.2 points."""

CHANGES = frozenset({Stage.PRUNE, Stage.STATISTICS})
"""Stages that change a network at once: there are no epochs to measure after."""

CHANGING_BATCH = 256

Side = Annotated[int, Field(ge=1, le=2**16)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingWork(_Part):
    """One stage of a method; a change that takes no training is one epoch."""

    stage: Stage
    images: int = Field(ge=0, le=MAX_COUNT, description="Of an epoch.")
    epochs: int = Field(ge=0, le=MAX_COUNT)
    batch_size: int = Field(ge=1, le=MAX_COUNT)
    passes: float = Field(gt=0, le=100, description="Work of an image, in forward passes.")

    @property
    def seen(self) -> int:
        """Images of all epochs."""
        return self.images * self.epochs

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return -(-self.images // self.batch_size) * self.epochs


class Workload(_Part):
    """All that decides what a job costs."""

    architecture: str = Field(max_length=80)
    input_size: tuple[Side, Side] = Field(description="Height and width, pixels.")
    model_bytes: int = Field(ge=0, le=MAX_BYTES, description="Of the file.")
    training: tuple[TrainingWork, ...]
    different_images: int = Field(
        default=0,
        ge=0,
        le=MAX_COUNT,
        description="Clean images; 0: as many as the longest epoch has.",
    )
    screened_images: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Looked at for triggers; 0: none."
    )
    fitted_images: int = Field(
        default=0,
        ge=0,
        le=MAX_COUNT,
        description="Looked at, as they are and augmented, to see what the model bears.",
    )
    sought_images: int = Field(
        default=0,
        ge=0,
        le=MAX_COUNT,
        description="With triggers on, to see which of them the model falls for; 0: none.",
    )
    evaluation_images: int = Field(ge=0, le=MAX_COUNT)
    curve_images: int = Field(ge=0, le=MAX_COUNT, description="Measured after each epoch.")
    inspected_classes: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Searched for triggers; 0: no search is made."
    )
    inspections: int = Field(default=2, ge=0, le=2, description="Each of these classes.")
    retunings: int = Field(
        default=0,
        ge=0,
        le=MAX_COUNT,
        description="Copies of the sanitized model that are trained further; 0: none.",
    )
    probes: int = Field(ge=0, le=MAX_COUNT)
    device: DeviceKind
    threads: int = Field(ge=1, le=4096, description="Of the CPU.")

    @property
    def pixels(self) -> int:
        """Of an image, one channel."""
        return self.input_size[0] * self.input_size[1]

    @property
    def clean_images(self) -> int:
        """Images that are trained on, each counted once."""
        return self.different_images or max((work.images for work in self.training), default=0)

    @property
    def decoded_images(self) -> int:
        """Images that are read and kept for the run."""
        return self.clean_images + self.evaluation_images

    @property
    def evaluated(self) -> int:
        """Images that go through a network without being trained on: twice all, and the curves.

        A search counts as what its passes are worth.
        """
        epochs = sum(work.epochs for work in self.training if work.stage not in CHANGES)
        curves = self.curve_images * epochs
        measured = (1 + self.probes) * (2 * self.evaluation_images + curves)
        measured += self.screened_images + self.fitted_images + self.sought_images
        measured += expected_images(self.clean_images)
        return measured + round(self.inspections * inspection_passes(self.inspected_classes))

    @property
    def retuning(self) -> TrainingWork | None:
        """The training of all copies of the sanitized model, one after the other."""
        if not self.retunings:
            return None
        return TrainingWork(
            stage=Stage.RETUNE,
            images=self.clean_images,
            epochs=RETUNING_EPOCHS * self.retunings,
            batch_size=RETUNING_BATCH,
            passes=FINETUNING_PASSES,
        )

    @property
    def retuned_evaluated(self) -> int:
        """Images that copies of the sanitized model, and it itself, are measured on for that."""
        return retuned_evaluated(self.evaluation_images, self.probes) if self.retunings else 0

    @classmethod
    def of_report(cls, report: Report) -> Self | None:
        """What a run had to do; None: its report is of a version that did not say."""
        cost = report.cost
        if cost is None:
            return None
        method = METHOD_ADAPTER.validate_python(report.method)
        inspected, inspections = 0, 2
        if report.inspections:
            inspected = len(report.inspections.before.classes)
        elif report.tries:
            inspected, inspections = min(report.model.num_classes, MAX_TARGETS), 1
        # Of what `auto` may try, some may have been left out.
        stages = {stage.stage for stage in report.stages}
        # Of an easy task the batches are others than the method's.
        batches = {
            stage.stage: int(stage.values["batch_size"])
            for stage in report.stages
            if "batch_size" in stage.values
        }
        work = [
            each.model_copy(update={"batch_size": batches.get(each.stage, each.batch_size)})
            for each in training_work(method, report.clean_data.images)
        ]
        return cls(
            architecture=report.model.architecture[:80],
            input_size=report.model.input_size,
            model_bytes=report.input.bytes,
            training=tuple(each for each in work if each.stage in stages),
            different_images=report.clean_data.images,
            screened_images=report.screening.images if report.screening else 0,
            fitted_images=fitted_images(report.clean_data.images) if Stage.FIT in stages else 0,
            sought_images=(sought_images(method) if Stage.SEEK in stages else 0)
            + (tried_images(method, report.clean_data.images) if Stage.GO_BACK in stages else 0),
            evaluation_images=report.evaluation_data.images,
            curve_images=cost.curve_images,
            inspected_classes=inspected,
            inspections=inspections,
            retunings=retunings(len(report.before.probes)) if report.durability else 0,
            probes=len(report.before.probes),
            device=cost.device,
            threads=cost.threads,
        )


class Spent(_Part):
    """What a run took."""

    training_seconds: float = Field(
        ge=0, le=MAX_SECONDS, description="Of the method, and of retuning its result."
    )
    evaluation_seconds: float = Field(
        ge=0, le=MAX_SECONDS, description="Before, after, and for the curves."
    )
    other_seconds: float = Field(ge=0, le=MAX_SECONDS, description="Start, loading, writing.")
    host_bytes: int = Field(ge=0, le=MAX_BYTES, description="Most that was resident at a time.")
    device_bytes: int | None = Field(ge=0, le=MAX_BYTES)

    @property
    def seconds(self) -> float:
        """Of the whole run, its start included."""
        return self.training_seconds + self.evaluation_seconds + self.other_seconds

    @classmethod
    def of_report(cls, report: Report) -> Self | None:
        """What a run took; None: its report is of a version that did not say."""
        cost = report.cost
        if cost is None:
            return None
        seconds = {stage.stage: stage.seconds for stage in report.stages}
        trained = [stage for stage in Stage if stage not in AROUND] + [Stage.RETUNE]
        training = sum(seconds.get(stage, 0.0) for stage in trained)
        evaluation = cost.curve_seconds + sum(seconds.get(stage, 0.0) for stage in MEASURING)
        rest = cost.start_seconds + report.seconds - training - evaluation
        return cls(
            training_seconds=training,
            evaluation_seconds=evaluation,
            other_seconds=0.0 if rest < 0 else rest,
            host_bytes=cost.peak_host_bytes,
            device_bytes=cost.peak_device_bytes,
        )


class Measured(_Part):
    """A finished job: what it had to do and what that took."""

    workload: Workload
    spent: Spent
    clean_available: int = Field(ge=0, le=MAX_COUNT, description="Images the clean data has.")
    evaluation_available: int = Field(ge=0, le=MAX_COUNT, description="Likewise.")

    @classmethod
    def of_report(cls, report: Report) -> Self | None:
        """Of a run that went through at once on one device; None: it did not, or its report says
        nothing sound.

        A run that was taken up again started and loaded more than once, and one that backed off
        trained more than once. Of several devices it is not known what one would have taken.
        """
        if (
            report.resumed
            or report.devices > 1
            or any("scale" in stage.values for stage in report.stages)
        ):
            return None
        try:
            workload, spent = Workload.of_report(report), Spent.of_report(report)
            if workload is None or spent is None:
                return None
            return cls(
                workload=workload,
                spent=spent,
                clean_available=report.clean_data.images_available,
                evaluation_available=report.evaluation_data.images_available,
            )
        except ValidationError:  # nobody has checked what the process says of its method
            return None


def training_work(method: MethodConfig, images: int) -> tuple[TrainingWork, ...]:
    """The training stages of a method, as `sanitizer.methods.plan` has them.

    Args:
        images: That are trained on.
    """
    match method:
        case FinetuneConfig():
            return (_work(Stage.FINETUNE, method.training, images, FINETUNING_PASSES),)
        case NadConfig():
            return (
                _work(Stage.TEACHER, method.teacher, images, FINETUNING_PASSES),
                _work(Stage.DISTIL, method.student, images, NAD_PASSES),
            )
        case ArgdConfig():
            teaching = hardened_passes(FINETUNING_PASSES, method.hardening)
            distilling = hardened_passes(ARGD_PASSES, method.student_hardening)
            return (
                _work(Stage.TEACHER, method.teacher, images, teaching),
                _work(Stage.DISTIL, method.student, images, distilling),
            )
        case FinePruningConfig():
            return (
                changing_work(Stage.PRUNE, images, IDLENESS_PASSES),
                _work(Stage.FINETUNE, method.training, images, FINETUNING_PASSES),
            )
        case AnpConfig():
            return (
                _work(Stage.MASK, method.mask_training, images, ANP_MASKING_PASSES),
                changing_work(Stage.PRUNE, images, ANP_PRUNING_PASSES),
            )
        case ClpConfig():
            return (changing_work(Stage.PRUNE, images, CLP_PASSES),)
        case FtSamConfig():
            return (_work(Stage.FINETUNE, method.training, images, FT_SAM_PASSES),)
        case FstConfig():
            return (_work(Stage.SHIFT, method.training, images, FINETUNING_PASSES),)
        case IBauConfig():
            return (_work(Stage.UNLEARN, method.training, images, i_bau_passes(method)),)
        case McrConfig():
            return (
                _work(Stage.TEACHER, method.endpoint, images, FINETUNING_PASSES),
                _work(Stage.CURVE, method.curve, images, FINETUNING_PASSES),
                changing_work(Stage.STATISTICS, images, STATISTICS_PASSES),
            )
        case AutoConfig():
            left = images - round(images * heldout_share(images))
            return tuple(work for each in method.tries for work in training_work(each, left))


def heldout_share(images: int) -> float:
    """Of clean images, what a method keeps apart to choose by."""
    return min(HELDOUT_SHARE, HELDOUT_IMAGES / max(1, images))


def inspection_passes(classes: int) -> float:
    """Forward passes of single images that a search of one model is worth.

    Args:
        classes: That are searched.
    """
    search = SEARCH_STEPS * SEARCH_BATCH * SEARCH_PASSES + RATED_IMAGES
    return min(classes, MAX_TARGETS) * SEARCH_FAMILIES * search


def fitted_images(images: int) -> int:
    """Images that go through the network to see which augmentation it bears: as they are, mirrored
    and cropped.

    Args:
        images: That are trained on.
    """
    return 3 * min(images, LOOKED_AT)


def expected_images(images: int) -> int:
    """Images that go through the network to see whether it expects others: as they are, and about
    a quarter of them prepared in each of four other ways.

    Args:
        images: Clean ones that there are.
    """
    return 2 * min(images, EXPECTED_IMAGES)


def sought_images(method: MethodConfig) -> int:
    """Images that go through the suspect model with triggers on, at most, before it is trained."""
    tried = method.argd if isinstance(method, AutoConfig) and "argd" in method.methods else method
    if not (isinstance(tried, ArgdConfig) and tried.searches):
        return 0
    children = SEEK_GENERATIONS * SEEK_TARGETS * SEEK_PARENTS * SEEK_CHILDREN
    return SEEK_KINDS * (SEEK_FIRST + children) * SEEK_IMAGES


def tried_images(method: MethodConfig, images: int) -> int:
    """Images that go through the trained model, at most, when it goes back towards what it was.

    Args:
        images: Clean ones that there are.
    """
    tried = method.argd if isinstance(method, AutoConfig) and "argd" in method.methods else method
    if not (isinstance(tried, ArgdConfig) and tried.goes_back):
        return 0
    triggers = SEEK_KINDS * TRIED_TARGETS
    return (1 + len(TRIED_SHARES)) * (1 + triggers) * min(TRIED_IMAGES, images)


def retunings(probes: int) -> int:
    """Copies of the sanitized model that are trained further: on the clean images, and for each
    probe poisoned with its target's label and with another one."""
    return 1 + 2 * probes


def retuned_evaluated(images: int, probes: int) -> int:
    """Images that are measured on for that, each without and with triggers.

    The sanitized model is measured with each trigger for both labels, the copy that saw clean
    images with each trigger, and every other copy with one trigger for one label.

    Args:
        images: Evaluation images.
    """
    each = (1 + 2 * probes) + (1 + probes) + 2 * probes * 2
    return min(images, RETUNED_IMAGES) * each


def hardened_passes(passes: float, hardening: Hardening) -> float:
    """Forward passes that an image is worth in a hardened step of what costs `passes` without."""
    perturbed = hardening.perturbed_share if hardening.perturbs else 0.0
    ascent = hardening.ascent_share if hardening.rho else 0.0
    # The part that tells where weights are worse begins with the images that are perturbed.
    twice = ascent * passes + min(ascent, perturbed) * FINETUNING_PASSES
    # Once for both passes of a step at worse weights.
    choosing = hardening.perturbed_share * hardening.trigger_candidates if hardening.chooses else 0
    return passes + perturbed * FINETUNING_PASSES + twice + choosing


def i_bau_passes(config: IBauConfig) -> float:
    """Forward passes that an image is worth in a round."""
    return I_BAU_PASSES + I_BAU_PASSES_PER_STEP * (config.fixed_point_steps - 1)


def changing_work(stage: Stage, images: int, passes: float) -> TrainingWork:
    """A stage that changes a network without training it."""
    return TrainingWork(
        stage=stage, images=images, epochs=1, batch_size=CHANGING_BATCH, passes=passes
    )


def _work(stage: Stage, training: Training, images: int, passes: float) -> TrainingWork:
    return TrainingWork(
        stage=stage,
        images=training.epoch_images(images),
        epochs=training.epochs,
        batch_size=training.batch_size,
        passes=passes,
    )


def images_evaluated(evaluation: Evaluation) -> int:
    """Images that went through the network: triggers are put on those of other classes alone."""
    return evaluation.accuracy.total + sum(probe.asr.total for probe in evaluation.probes)
