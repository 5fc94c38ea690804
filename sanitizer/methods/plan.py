"""What each method does, in which order: the one place where a method's name becomes code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sanitizer.cost.workload import (
    ANP_MASKING_PASSES,
    ANP_PRUNING_PASSES,
    ARGD_PASSES,
    CLP_PASSES,
    FINETUNING_PASSES,
    FT_SAM_PASSES,
    IDLENESS_PASSES,
    NAD_PASSES,
    STATISTICS_PASSES,
    hardened_passes,
    i_bau_passes,
    tried_images,
)
from sanitizer.data.image_set import ImageSet
from sanitizer.events import Stage
from sanitizer.methods.anp import (
    AnpStep,
    carried_masks,
    leave_masks,
    masked_layers,
    prune_by_masks,
)
from sanitizer.methods.argd.step import ArgdStep
from sanitizer.methods.clp import find_layers, prune_by_lipschitz_bound
from sanitizer.methods.feature_shift import FeatureShiftStep
from sanitizer.methods.fine_pruning import (
    FinePruneStep,
    find_classifier,
    find_logits_layer,
    prune_idle_channels,
)
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.ft_sam import FtSamStep
from sanitizer.methods.going_back import go_back
from sanitizer.methods.hardening import HardenedStep
from sanitizer.methods.i_bau import IBauStep
from sanitizer.methods.lures import Lures
from sanitizer.methods.mcr import CurveStep, recompute_statistics
from sanitizer.methods.nad import NadStep
from sanitizer.methods.random_triggers import pictures_of
from sanitizer.methods.step import Step
from sanitizer.methods.trigger_search import FoundTriggers
from sanitizer.networks.taps import TapPoint
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.spec import (
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
    SingleMethodConfig,
    Training,
)

Role = Literal["student", "teacher"]


def tries_of(config: MethodConfig) -> tuple[SingleMethodConfig, ...]:
    """The methods that are tried, each on the suspect model: one, or those of `auto`."""
    return config.tries if isinstance(config, AutoConfig) else (config,)


@dataclass(frozen=True)
class Bench:
    """What a step is made from.

    Attributes:
        student: Starts as the suspect model; what the run gives back.
        teacher: Starts as the suspect model too.
        taps: Where both are tapped.
        seed: Of the run.
        precision: What the networks compute in.
        group: Who shares each batch.
        clean: What is trained on; some methods make pictures of it.
        found: Triggers that the suspect model falls for, for methods that use them.
        suspect: A copy of the suspect model, for methods that need it beside those they train.
        scale: Of learning rates and of what goes with them; see `TrainingStage.backs_off`.
        is_easy: Whether the suspect model gets nearly all images right.
    """

    student: nn.Module
    teacher: nn.Module
    taps: Sequence[TapPoint]
    seed: int
    precision: torch.dtype = torch.float32
    group: Group = ALONE
    clean: ImageSet | None = None
    found: FoundTriggers | None = None
    suspect: nn.Module | None = None
    scale: float = 1.0
    is_easy: bool = False


@dataclass(frozen=True)
class TrainingStage:
    """One training run of a method.

    Attributes:
        stage: What events and the report call it.
        trains: Which of the bench's networks.
        training: Its schedule and optimizer.
        make_step: Called when the stage begins, with the networks as the stages before left them.
            What the step trains may be another network, made of the bench's.
        relative_cost: Work per image, in forward passes: for the progress bar and the estimate.
        finish: Called once trained, where the bench's network must take over what was.
        subject: What is trained, for people; none: the network, by its role.
        backs_off: Whether it is to be begun again, at a smaller scale, where it loses what the
            network knew.
        setting: What the method's config calls `training`.
    """

    stage: Stage
    trains: Role
    training: Training
    make_step: Callable[[Bench], Step]
    relative_cost: float
    finish: Callable[[Bench, Step], None] = lambda _bench, _step: None
    subject: str | None = None
    backs_off: bool = False
    setting: str = "training"

    @property
    def passes(self) -> float:
        """Work of the stage per clean image, in forward passes."""
        return self.training.epochs * self.relative_cost

    def work(self, images: int) -> float:
        """Forward passes of single images, of so many clean ones."""
        return self.training.epoch_images(images) * self.passes


@dataclass(frozen=True)
class ChangingStage:
    """A change of one network that no gradient descent makes, such as pruning.

    Attributes:
        stage: What events and the report call it.
        changes: Which of the bench's networks.
        message: What happens, for people.
        change: Changes the network in place. Gets the clean images, and a function to tell how many
            images went through the network since the last call. Returns figures for the report.
        passes: Work per clean image, in forward passes: for the progress bar and the estimate.
        tried: Images that go through the network beside that, of so many clean ones.
    """

    stage: Stage
    changes: Role
    message: str
    change: Callable[[Bench, ImageSet, Callable[[int], None]], Mapping[str, float]]
    passes: float = 0.0
    tried: Callable[[int], int] = lambda _images: 0

    def work(self, images: int) -> float:
        """Forward passes of single images, of so many clean ones."""
        return images * self.passes + self.tried(images)


MethodStage = TrainingStage | ChangingStage


def plan(config: MethodConfig) -> tuple[MethodStage, ...]:
    """What a method does to the networks, in order; of `auto`, all that it may try."""
    match config:
        case FinetuneConfig():
            return (_finetuning(Stage.FINETUNE, "student", config.training),)
        case NadConfig():
            return (
                _finetuning(Stage.TEACHER, "teacher", config.teacher, "teacher"),
                TrainingStage(
                    Stage.DISTIL,
                    "student",
                    config.student,
                    lambda bench: NadStep(
                        bench.student,
                        bench.teacher,
                        bench.taps,
                        config,
                        bench.precision,
                        bench.group,
                    ),
                    relative_cost=NAD_PASSES,
                    setting="student",
                ),
            )
        case ArgdConfig():
            return (
                TrainingStage(
                    Stage.TEACHER,
                    "teacher",
                    config.teacher,
                    lambda bench: _hardened(
                        _teaching_step(bench, config), config.hardening, bench, Stage.TEACHER
                    ),
                    relative_cost=hardened_passes(FINETUNING_PASSES, config.hardening),
                    backs_off=_backs_off(config),
                    setting="teacher",
                ),
                TrainingStage(
                    Stage.DISTIL,
                    "student",
                    config.student,
                    lambda bench: _hardened(
                        _argd_step(bench, config), config.student_hardening, bench, Stage.DISTIL
                    ),
                    relative_cost=hardened_passes(ARGD_PASSES, config.student_hardening),
                    backs_off=_backs_off(config),
                    setting="student",
                ),
                *((_going_back(config),) if config.goes_back else ()),
            )
        case FinePruningConfig():
            return (
                ChangingStage(
                    Stage.PRUNE,
                    "student",
                    "Pruning the channels that are idle on clean images.",
                    lambda bench, images, tell: prune_idle_channels(
                        bench.student, images, tell, config.tolerance, bench.seed
                    ),
                    passes=IDLENESS_PASSES,
                ),
                TrainingStage(
                    Stage.FINETUNE,
                    "student",
                    config.training,
                    lambda bench: FinePruneStep(bench.student, bench.precision, bench.group),
                    relative_cost=FINETUNING_PASSES,
                ),
            )
        case AnpConfig():
            return (
                TrainingStage(
                    Stage.MASK,
                    # It carries the masks: the student has to stay what it is until it is pruned.
                    "teacher",
                    config.mask_training,
                    lambda bench: AnpStep(
                        bench.teacher, config, bench.seed, bench.precision, bench.group
                    ),
                    relative_cost=ANP_MASKING_PASSES,
                    finish=lambda bench, step: leave_masks(bench.teacher, step),
                    subject="masks",
                    setting="mask_training",
                ),
                ChangingStage(
                    Stage.PRUNE,
                    "student",
                    "Pruning the channels that the masks close.",
                    lambda bench, images, tell: prune_by_masks(
                        bench.student,
                        carried_masks(bench.teacher),
                        images,
                        tell,
                        config,
                        bench.seed,
                    ),
                    passes=ANP_PRUNING_PASSES,
                ),
            )
        case ClpConfig():
            return (
                ChangingStage(
                    Stage.PRUNE,
                    "student",
                    "Pruning the channels with an outstanding Lipschitz bound.",
                    lambda bench, images, _tell: prune_by_lipschitz_bound(
                        bench.student, images.shape, config.deviations
                    ),
                    passes=CLP_PASSES,
                ),
            )
        case FtSamConfig():
            return (
                TrainingStage(
                    Stage.FINETUNE,
                    "student",
                    config.training,
                    lambda bench: FtSamStep(bench.student, config, bench.precision, bench.group),
                    relative_cost=FT_SAM_PASSES,
                ),
            )
        case FstConfig():
            return (
                TrainingStage(
                    Stage.SHIFT,
                    "student",
                    config.training,
                    lambda bench: FeatureShiftStep(
                        bench.student,
                        config.alpha,
                        make_generator(bench.seed, Stage.SHIFT, "classifier"),
                        bench.precision,
                        bench.group,
                    ),
                    relative_cost=FINETUNING_PASSES,
                ),
            )
        case AutoConfig():
            return tuple(stage for each in config.tries for stage in plan(each))
        case IBauConfig():
            return (
                TrainingStage(
                    Stage.UNLEARN,
                    "student",
                    config.training,
                    lambda bench: IBauStep(bench.student, config, bench.precision, bench.group),
                    relative_cost=i_bau_passes(config),
                ),
            )
        case McrConfig():
            return (
                _finetuning(Stage.TEACHER, "teacher", config.endpoint, "endpoint"),
                TrainingStage(
                    Stage.CURVE,
                    "student",
                    # The step decays the weights of the curve's points, not of its bend.
                    config.curve.model_copy(update={"weight_decay": 0.0}),
                    lambda bench: CurveStep(
                        bench.student,
                        bench.teacher,
                        config,
                        bench.seed,
                        bench.precision,
                        bench.group,
                    ),
                    relative_cost=FINETUNING_PASSES,
                    finish=lambda _bench, step: _leave_curve(step, config),
                    subject="curve",
                    setting="curve",
                ),
                ChangingStage(
                    Stage.STATISTICS,
                    "student",
                    "Taking the batch norms' statistics from the clean images.",
                    lambda bench, images, tell: recompute_statistics(
                        bench.student,
                        images,
                        tell,
                        batch_size=config.curve.batch_size,
                        seed=bench.seed,
                        precision=bench.precision,
                    ),
                    passes=STATISTICS_PASSES,
                ),
            )


def check_applies(config: MethodConfig, network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuses a method that cannot work on a network, before anything is measured or trained.

    `auto` passes over those that cannot.

    Args:
        shape: Of its images: channels, height, width.

    Raises:
        InvalidSpec: The network lacks the layers that the method works on.
    """
    match config:
        case FinePruningConfig():
            find_classifier(network)
        case FstConfig():
            find_logits_layer(network)
        case ArgdConfig() if config.classifier_shift:
            find_logits_layer(network)
        case AnpConfig():
            masked_layers(network)
        case ClpConfig():
            find_layers(network, shape)
        case _:
            pass  # the others train whatever network there is


def _leave_curve(step: Step, config: McrConfig) -> None:
    if not isinstance(step, CurveStep):
        raise TypeError(f"a curve was expected, not {type(step).__name__}")
    step.network.leave(config.position)


def _hardened(step: Step, hardening: Hardening, bench: Bench, stage: Stage) -> Step:
    if not hardening.is_on:
        return step
    hardening = hardening.model_copy(update={"rho": bench.scale * hardening.rho})
    pictures = near = lures = None
    if hardening.random_triggers and bench.clean is not None:
        pictures = pictures_of(bench.clean, bench.seed)
    if hardening.searches and bench.found is not None:
        near = bench.found.for_share(hardening.found_share)
    if hardening.chooses and bench.suspect is not None and bench.clean is not None:
        device = next(bench.suspect.parameters()).device
        lures = Lures(bench.suspect, bench.clean, bench.seed, bench.precision, device)
    seed_parts = (bench.seed, stage, "perturbation")
    return HardenedStep(step, hardening, seed_parts, pictures, near, lures)


def _backs_off(config: ArgdConfig) -> bool:
    # A classifier that is drawn anew has nothing to lose at first, and what was lost then is no
    # fault of the student's.
    return config.back_off and not config.classifier_shift


def _teaching_step(bench: Bench, config: ArgdConfig) -> Step:
    if not config.classifier_shift:
        return FinetuneStep(
            bench.teacher, bench.precision, bench.group, label_smoothing=config.label_smoothing
        )
    return FeatureShiftStep(
        bench.teacher,
        config.classifier_shift,
        make_generator(bench.seed, Stage.TEACHER, "classifier"),
        bench.precision,
        bench.group,
        label_smoothing=config.label_smoothing,
    )


def _argd_step(bench: Bench, config: ArgdConfig) -> ArgdStep:
    if config.student_from == "teacher":
        bench.student.load_state_dict(bench.teacher.state_dict())
    return ArgdStep(
        bench.student,
        bench.teacher,
        bench.taps,
        config,
        make_generator(bench.seed, Stage.DISTIL, "projections"),
        bench.precision,
        bench.group,
    )


def _going_back(config: ArgdConfig) -> ChangingStage:
    def change(bench: Bench, images: ImageSet, tell: Callable[[int], None]) -> Mapping[str, float]:
        if bench.suspect is None or bench.found is None:
            raise RuntimeError("there is no suspect model to go back to, or it was not searched")
        if bench.is_easy:
            # Little was lost, and so there is little to have back.
            return {"gone": 0.0, "regained": 0.0}
        return go_back(
            bench.student,
            bench.suspect,
            config.suspect_share,
            config.most_regained,
            bench.found,
            images,
            seed=bench.seed,
            precision=bench.precision,
            tell=tell,
        )

    return ChangingStage(
        Stage.GO_BACK,
        "student",
        "Going back towards the model as it came, as far as no trigger that was found gains by it.",
        change,
        tried=lambda images: tried_images(config, images),
    )


def _finetuning(
    stage: Stage, trains: Role, training: Training, setting: str = "training"
) -> TrainingStage:
    return TrainingStage(
        stage,
        trains,
        training,
        lambda bench: FinetuneStep(getattr(bench, trains), bench.precision, bench.group),
        relative_cost=FINETUNING_PASSES,
        setting=setting,
    )
