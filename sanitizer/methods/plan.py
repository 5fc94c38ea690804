"""What each method trains, in which order: the one place where a method's name becomes code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sanitizer.cost.workload import ARGD_PASSES, FINETUNING_PASSES, NAD_PASSES
from sanitizer.events import Stage
from sanitizer.methods.argd.step import ArgdStep
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.nad import NadStep
from sanitizer.methods.step import Step
from sanitizer.networks.taps import TapPoint
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.spec import ArgdConfig, FinetuneConfig, MethodConfig, NadConfig, Training

Role = Literal["student", "teacher"]


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
    """

    student: nn.Module
    teacher: nn.Module
    taps: Sequence[TapPoint]
    seed: int
    precision: torch.dtype = torch.float32
    group: Group = ALONE


@dataclass(frozen=True)
class TrainingStage:
    """One training run of a method.

    Attributes:
        stage: What events and the report call it.
        trains: Which of the bench's networks.
        training: Its schedule and optimizer.
        make_step: Called when the stage begins, with the networks as the stages before left them.
        relative_cost: Work per image, in forward passes: for the progress bar alone.
    """

    stage: Stage
    trains: Role
    training: Training
    make_step: Callable[[Bench], Step]
    relative_cost: float


def plan(config: MethodConfig) -> tuple[TrainingStage, ...]:
    """The training stages of a method."""
    match config:
        case FinetuneConfig():
            return (_finetuning(Stage.FINETUNE, "student", config.training),)
        case NadConfig():
            return (
                _finetuning(Stage.TEACHER, "teacher", config.teacher),
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
                ),
            )
        case ArgdConfig():
            return (
                _finetuning(Stage.TEACHER, "teacher", config.teacher),
                TrainingStage(
                    Stage.DISTIL,
                    "student",
                    config.student,
                    lambda bench: ArgdStep(
                        bench.student,
                        bench.teacher,
                        bench.taps,
                        config,
                        make_generator(bench.seed, Stage.DISTIL, "projections"),
                        bench.precision,
                        bench.group,
                    ),
                    relative_cost=ARGD_PASSES,
                ),
            )


def _finetuning(stage: Stage, trains: Role, training: Training) -> TrainingStage:
    return TrainingStage(
        stage,
        trains,
        training,
        lambda bench: FinetuneStep(getattr(bench, trains), bench.precision, bench.group),
        relative_cost=FINETUNING_PASSES,
    )
