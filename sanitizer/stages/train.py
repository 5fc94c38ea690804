"""Does to the network of a run what a method does."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from time import monotonic

import torch

from sanitizer.data.loader import Batches
from sanitizer.errors import TrainingDiverged
from sanitizer.evaluation.augmentation import EASY
from sanitizer.events import MetricEvent
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.methods.plan import Bench, ChangingStage, TrainingStage, plan
from sanitizer.methods.step import Step
from sanitizer.networks.weights import put_weights
from sanitizer.report.model import EpochRecord, StageRecord
from sanitizer.run_state import RunState
from sanitizer.spec import ArgdConfig, SingleMethodConfig, Training
from sanitizer.stages.measure import measure_curve
from sanitizer.stages.run import Run
from sanitizer.stages.seek import seek

BACK_OFF = 0.25
"""Of learning rates, from one try to the next. A SqueezeNet, which has no batch norm, needs the
second: at a quarter of the default it unlearns everything, at a sixteenth it loses a point."""
MOST_BACK_OFFS = 3
"""Of all stages of a method together."""
LEAST_KEPT = 0.7
"""Of the suspect model's accuracy, while it is trained. Networks that bear it keep 0.95 and more in
every epoch."""
LEAST_KEPT_IN_THE_END = 0.85


def run_method(run: Run, method: SingleMethodConfig) -> None:
    """Does to the network what the method does, from where the state stands."""
    bench = Bench(
        run.network,
        deepcopy(run.network),
        run.inputs.suspect.taps,
        run.spec.seed,
        run.precision,
        run.group,
        run.trained_on,
        seek(run) if isinstance(method, ArgdConfig) and method.searches else None,
        deepcopy(run.network) if isinstance(method, ArgdConfig) and method.asks_suspect else None,
        is_easy=_accuracy_before(run) >= EASY,
    )
    for role, weights in run.state.networks.items():
        put_weights(getattr(bench, role), weights)
    done = {record.stage for record in run.state.finished}
    for stage in plan(method):
        if stage.stage not in done:
            match stage:
                case TrainingStage():
                    _train(run, method, stage, bench)
                case ChangingStage():
                    _change(run, stage, bench)


def _accuracy_before(run: Run) -> float:
    """Of the model as it came."""
    if run.state.before is None:
        raise RuntimeError("the suspect model is measured before anything is trained")
    return run.state.before.accuracy.value


def _train(run: Run, method: SingleMethodConfig, stage: TrainingStage, bench: Bench) -> None:
    """Trains one network, more gently where it loses what it knew."""
    clean = run.trained_on
    images, seen = len(clean), run.planned.epoch_images(stage)
    training = _fitted(run, stage.training)
    message = (
        f"Training the {stage.subject or stage.trains} on {images} clean images for "
        f"{training.epochs} epoch{'s' if training.epochs > 1 else ''}"
    )
    if seen > images:
        message += f" of {seen} images each"
    if training.batch_size != stage.training.batch_size:
        message += f", in batches of {training.batch_size} since the model's task is easy"
    run.journal.begin(stage.stage, f"{message}.")
    trained = getattr(bench, stage.trains)
    begins_with = _copy_of(trained) if stage.backs_off else {}
    # Of a try that was interrupted, some is done already.
    share = len(run.state.epochs) / stage.training.epochs
    begins_at = run.progress.done - share * run.planned.of_stage(stage)
    while True:
        begun, spent = monotonic(), _seconds_of(run.state)
        scaled = replace(bench, scale=BACK_OFF**run.state.backed_off)
        may_back_off = stage.backs_off and run.state.backed_off < MOST_BACK_OFFS
        try:
            step = _trained(run, method, stage, scaled, keeps=may_back_off)
            break
        except (AccuracyLost, TrainingDiverged) as error:
            if not may_back_off:
                raise
            run.state.lost_seconds += spent + monotonic() - begun
            run.progress.go_back_to(begins_at)
            put_weights(trained, begins_with)
            _back_off(run, stage, str(error))
    stage.finish(scaled, step)
    run.state.networks[stage.trains] = trained.state_dict()
    seconds = sum(record.values["seconds"] for record in run.state.epochs)
    values: dict[str, float] = {}
    if scaled.scale < 1:
        values = {"scale": scaled.scale, "lost_seconds": round(run.state.lost_seconds, 3)}
    if training != stage.training:
        values["crop_padding"] = training.crop_padding
        values["horizontal_flip"] = float(training.horizontal_flip)
        values["batch_size"] = training.batch_size
    run.record(stage.stage, seconds, run.state.epochs, values)
    run.state.epochs, run.state.lost_seconds = [], 0.0
    run.save()


def _copy_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _seconds_of(state: RunState) -> float:
    """That the try under way took before this process came."""
    epochs = sum(record.values["seconds"] for record in state.epochs)
    return epochs + (state.loop.seconds if state.loop else 0.0)


def _trained(
    run: Run, method: SingleMethodConfig, stage: TrainingStage, bench: Bench, *, keeps: bool
) -> Step:
    """Trains at the bench's scale.

    Args:
        keeps: Whether it is an error if the network does not keep its accuracy.

    Raises:
        AccuracyLost: It does not.
        TrainingDiverged: It is no longer finite.
    """
    training = _fitted(run, stage.training).scaled(bench.scale)
    step = stage.make_step(bench)
    seed = (run.spec.seed, stage.stage.value)
    place = f"method.{method.name}" if run.chooses else "method"
    train(
        step,
        Batches(run.trained_on, training, training.batch_size, run.device, seed, group=run.group),
        training,
        (*seed, "network"),
        state=run.state.loop,
        hooks=_Hooks(run, stage, step.network, keeps=keeps),
        setting=f"{place}.{stage.setting}",
    )
    return step


def _fitted(run: Run, training: Training) -> Training:
    """As it suits the model, as far as it is to."""
    borne, side = run.state.borne, min(run.inputs.suspect.input_size)
    return borne.fitted(training, side) if borne else training


def _back_off(run: Run, stage: TrainingStage, why: str) -> None:
    """Forgets the training so far: the next one is at a smaller scale."""
    run.state.epochs = []
    run.state.backed_off += 1
    run.save()
    share = _as_share(BACK_OFF**run.state.backed_off)
    run.journal.begin(stage.stage, f"{why} It begins again, at {share} of the learning rates.")


def scale_warning(records: Sequence[StageRecord]) -> str:
    """What to tell people of stages that backed off; empty if none did."""
    scales = [record.values["scale"] for record in records if "scale" in record.values]
    if not scales:
        return ""
    return (
        "At the learning rates that were asked for, the training lost what the network knew; it "
        f"ran at {_as_share(min(scales))} of them. So gentle a training may leave more of a "
        "backdoor."
    )


def _as_share(scale: float) -> str:
    return f"1/{round(1 / scale)}"


class AccuracyLost(Exception):
    """A training unlearns instead of learning."""


def _change(run: Run, stage: ChangingStage, bench: Bench) -> None:
    run.journal.begin(stage.stage, stage.message)
    begun = monotonic()
    figures = stage.change(
        bench, run.trained_on, lambda images: run.progress.add(stage.stage, images)
    )
    run.journal.emit(MetricEvent(stage=stage.stage, values=dict(figures)))
    run.state.networks[stage.changes] = getattr(bench, stage.changes).state_dict()
    run.record(stage.stage, monotonic() - begun, values=figures)
    run.save()


class _Hooks(LoopHooks):
    """Turns what the loop tells into events, records and checkpoints."""

    def __init__(
        self, run: Run, stage: TrainingStage, network: torch.nn.Module, *, keeps: bool
    ) -> None:
        self.run = run
        self.stage = stage
        self.network = network
        self.keeps = keeps
        self.saved = monotonic()

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        self.run.progress.add(
            self.stage.stage,
            self.run.planned.epoch_images(self.stage) * self.stage.relative_cost / steps,
            epoch=epoch + 1,
            epochs=self.stage.training.epochs,
            step=step,
            steps=steps,
        )

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        if self.keeps:
            self._check_kept(epoch, values["train_accuracy"])
        figures = {**values, **measure_curve(self.run, self.network, self.stage.stage)}
        self.run.state.epochs.append(EpochRecord(epoch=epoch, values=figures))
        self.run.journal.emit(MetricEvent(stage=self.stage.stage, epoch=epoch, values=figures))

    def _check_kept(self, epoch: int, accuracy: float) -> None:
        before = _accuracy_before(self.run)
        is_last = epoch == self.stage.training.epochs
        least = (LEAST_KEPT_IN_THE_END if is_last else LEAST_KEPT) * before
        if accuracy < least:
            raise AccuracyLost(
                f"In epoch {epoch} the {self.stage.subject or self.stage.trains} got "
                f"{100 * accuracy:.1f}% of the images right, where the model as it came has "
                f"{100 * before:.1f}%."
            )

    def wants_checkpoint(self) -> bool:
        due = monotonic() - self.saved >= self.run.spec.checkpoint_seconds
        return due and self.run.group.is_leader

    def save(self, state: LoopState) -> None:
        self.run.save(state)
        self.saved = monotonic()
