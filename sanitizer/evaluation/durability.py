"""Whether a backdoor comes back when the sanitized model is trained further.

A model may look clean and hold its backdoor still: fine-tuned a little, on a few poisoned images,
many sanitized models regain it within a few epochs, while a model that never had it does not (Min
et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense",
NeurIPS 2024, arXiv 2410.09838). So copies of the sanitized model are retuned and measured: one on
the clean images as they are; for each trigger that is given one on the clean images of which some
carry it and its target's label; and one, as a control, on the same with another label.

The control tells how readily this very network learns this trigger. It is no clean model: if the
network's features still answer to the trigger, that helps any label, the control's too, so that a
small difference is no proof of removal; and one label is easier to reach than another. What a model
that never had the backdoor does, a clean twin tells, sanitized as a job of its own with the same
probes.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from torch import nn

from sanitizer.attacks.poison import poison, trigger_for
from sanitizer.attacks.trigger import Trigger
from sanitizer.cost.workload import (
    FINETUNING_PASSES,
    RETUNING_BATCH,
    RETUNING_EPOCHS,
    RETUNING_POISONED,
    RETUNING_RATE,
    RETUNING_WEIGHT_DECAY,
)
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import LoopHooks, train
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import derive_seed
from sanitizer.report.model import Durability, ProbeDurability, Retuned
from sanitizer.spec import MethodConfig, Phase, Probe, Training, trainings_of

_DELIVERED, _CLEAN, _POISONED, _CONTROL = "delivered", "clean", "poisoned", "control"


@dataclass(frozen=True, eq=False)
class Delivered:
    """The sanitized model, and what copies of it are retuned and measured with.

    Attributes:
        network: Stays as it is.
        num_classes: Of the model, at least two.
        clean: Images to retune on, of more than one class.
        measured: Images that every figure is of.
        probes: Whose triggers are measured, and put on images of poisoned retunings.
        training: See `retuning_of`.
        seed: Of the run.
        device: Where the network is.
        precision: What networks compute in while they are trained.
        group: Who shares each batch.
    """

    network: nn.Module
    num_classes: int
    clean: ImageSet
    measured: ImageSet
    probes: Sequence[Probe]
    training: Training
    seed: int
    device: torch.device
    precision: torch.dtype = torch.float32
    group: Group = ALONE


@dataclass(frozen=True)
class _Retuning:
    """One copy of the sanitized model, or it itself.

    Attributes:
        name: Tells it from the others.
        measured: Triggers that it is measured with.
        retunes: Whether it is trained at all.
        poison: What its images are poisoned with.
    """

    name: str
    measured: Sequence[Trigger]
    retunes: bool = True
    poison: Trigger | None = None


def retuning_of(method: MethodConfig) -> Training:
    """How copies are retuned: the same for every method, but for its augmentation.

    What may be cropped and flipped depends on the images, and the method's settings know it.
    """
    own = next((training for _, training in trainings_of("method", method)), Training())
    return own.model_copy(
        update={
            "phases": (Phase(epochs=RETUNING_EPOCHS, learning_rate=RETUNING_RATE),),
            "batch_size": RETUNING_BATCH,
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": RETUNING_WEIGHT_DECAY,
            "fit_augmentation": True,
            "easy_batch_size": None,
            "least_epoch_images": 0,
        }
    )


def control_class(target: int, num_classes: int) -> int:
    """Another class than a trigger's target, always the same."""
    return (target + 1) % num_classes


def measure_durability(
    delivered: Delivered,
    done: dict[str, Retuned],
    on_work: Callable[[float], None] = lambda _passes: None,
    on_retuned: Callable[[], None] = lambda: None,
) -> Durability:
    """Retunes copies of a sanitized model and measures each.

    Args:
        done: Gets the figures of each retuning. What is in it, of the same model's retuning that
            was interrupted, is not done again.
        on_work: Called with the forward passes of single images since the last call.
        on_retuned: Called after each retuning.

    Raises:
        TrainingDiverged: A retuning's loss or weights are no longer finite.
        NotEnoughImages: No image can be poisoned or measured on.
    """
    for retuning in _retunings(delivered):
        if retuning.name not in done:
            done[retuning.name] = _figures(delivered, retuning, on_work)
            on_retuned()
    (phase,) = delivered.training.phases
    start, clean = done[_DELIVERED], done[_CLEAN]
    count = len(delivered.probes)
    return Durability(
        epochs=phase.epochs,
        learning_rate=phase.learning_rate,
        images=len(delivered.clean),
        measured_images=len(delivered.measured),
        accuracy=start.accuracy,
        clean_accuracy=clean.accuracy,
        probes=[
            ProbeDurability(
                name=probe.name,
                target_class=probe.target_class,
                control_class=control_class(probe.target_class, delivered.num_classes),
                poisoned_images=poisoned.poisoned_images,
                delivered=start.rates[place],
                clean=clean.rates[place],
                clean_natural=clean.natural[place] if clean.natural else None,
                poisoned=poisoned.rates[0],
                poisoned_accuracy=poisoned.accuracy,
                control_delivered=start.rates[count + place],
                control=control.rates[0],
                control_accuracy=control.accuracy,
            )
            for place, probe in enumerate(delivered.probes)
            for poisoned in [done[_name(_POISONED, probe)]]
            for control in [done[_name(_CONTROL, probe)]]
        ],
        seconds=round(sum(each.seconds for each in done.values()), 3),
    )


def _retunings(delivered: Delivered) -> Iterator[_Retuning]:
    probes = delivered.probes
    triggers = [_trigger(delivered, probe) for probe in probes]
    controls = [
        _trigger(delivered, probe.model_copy(update={"target_class": other}))
        for probe in probes
        for other in [control_class(probe.target_class, delivered.num_classes)]
    ]
    yield _Retuning(_DELIVERED, [*triggers, *controls], retunes=False)
    yield _Retuning(_CLEAN, triggers)
    for probe, trigger, control in zip(probes, triggers, controls, strict=True):
        yield _Retuning(_name(_POISONED, probe), [trigger], poison=trigger)
        yield _Retuning(_name(_CONTROL, probe), [control], poison=control)


def _name(kind: str, probe: Probe) -> str:
    return f"{kind}/{probe.name}"


def _trigger(delivered: Delivered, probe: Probe) -> Trigger:
    return trigger_for(probe, delivered.clean, delivered.num_classes)


def _figures(
    delivered: Delivered, retuning: _Retuning, on_work: Callable[[float], None]
) -> Retuned:
    begun = monotonic()
    network, poisoned_images = delivered.network, 0
    if retuning.retunes:
        images = delivered.clean
        if retuning.poison is not None:
            images, poisoned_images = _poisoned(delivered, retuning.poison)
        network = deepcopy(network)
        _train(delivered, network, images, on_work)
    evaluation = evaluate(
        network,
        delivered.measured,
        retuning.measured,
        num_classes=delivered.num_classes,
        device=delivered.device,
        draft=delivered.precision,
        on_images=on_work,
        group=delivered.group,
    )
    return Retuned(
        poisoned_images=poisoned_images,
        accuracy=evaluation.accuracy,
        rates=[probe.asr for probe in evaluation.probes],
        natural=[probe.natural_rate for probe in evaluation.probes],
        seconds=round(monotonic() - begun, 3),
    )


def _poisoned(delivered: Delivered, trigger: Trigger) -> tuple[ImageSet, int]:
    """The clean images with the trigger on some, one at least, and how many these are."""
    others = int(np.count_nonzero(delivered.clean.labels != trigger.target_class))
    count = min(others, max(1, round(RETUNING_POISONED * len(delivered.clean))))
    share = count / max(1, others) or 1.0  # of no images at all, `poison` says what is missing
    poisoned = poison(delivered.clean, trigger, share, derive_seed(delivered.seed, "retune"))
    return poisoned.image_set, len(poisoned.indices)


def _train(
    delivered: Delivered, network: nn.Module, images: ImageSet, on_work: Callable[[float], None]
) -> None:
    # The same order and augmentation for every copy: what sets them apart is the poison alone.
    seed_parts = (delivered.seed, "retune")
    batches = Batches(
        images,
        delivered.training,
        delivered.training.batch_size,
        delivered.device,
        seed_parts,
        group=delivered.group,
    )
    train(
        FinetuneStep(network, delivered.precision, delivered.group),
        batches,
        delivered.training,
        (*seed_parts, "network"),
        hooks=_WorkHooks(len(images) * FINETUNING_PASSES, on_work),
    )


class _WorkHooks(LoopHooks):
    """Tells the work of each step."""

    def __init__(self, epoch_work: float, on_work: Callable[[float], None]) -> None:
        self._epoch_work = epoch_work
        self._on_work = on_work

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        del epoch, step
        self._on_work(self._epoch_work / steps)
