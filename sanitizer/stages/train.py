"""Does to the network of a run what a method does."""

from copy import deepcopy
from time import monotonic

import torch

from sanitizer.data.loader import Batches
from sanitizer.events import MetricEvent
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.methods.plan import Bench, ChangingStage, TrainingStage, plan
from sanitizer.report.model import EpochRecord
from sanitizer.spec import SingleMethodConfig
from sanitizer.stages.measure import measure_curve
from sanitizer.stages.run import Run


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
    )
    for role, weights in run.state.networks.items():
        getattr(bench, role).load_state_dict(weights)
    done = {record.stage for record in run.state.finished}
    for stage in plan(method):
        if stage.stage not in done:
            match stage:
                case TrainingStage():
                    _train(run, stage, bench)
                case ChangingStage():
                    _change(run, stage, bench)


def _train(run: Run, stage: TrainingStage, bench: Bench) -> None:
    clean = run.trained_on
    images, seen = len(clean), run.planned.epoch_images(stage)
    run.journal.begin(
        stage.stage,
        f"Training the {stage.subject or stage.trains} on {images} clean images for "
        f"{stage.training.epochs} epochs" + (f" of {seen} images each." if seen > images else "."),
    )
    step = stage.make_step(bench)
    batches = Batches(
        clean,
        stage.training,
        stage.training.batch_size,
        run.device,
        (run.spec.seed, stage.stage.value),
        group=run.group,
    )
    train(
        step,
        batches,
        stage.training,
        (run.spec.seed, stage.stage.value, "network"),
        state=run.state.loop,
        hooks=_Hooks(run, stage, step.network),
    )
    stage.finish(bench, step)
    run.state.networks[stage.trains] = getattr(bench, stage.trains).state_dict()
    seconds = sum(record.values["seconds"] for record in run.state.epochs)
    run.record(stage.stage, seconds, run.state.epochs)
    run.state.epochs = []
    run.save()


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

    def __init__(self, run: Run, stage: TrainingStage, network: torch.nn.Module) -> None:
        self.run = run
        self.stage = stage
        self.network = network
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
        figures = {**values, **measure_curve(self.run, self.network, self.stage.stage)}
        self.run.state.epochs.append(EpochRecord(epoch=epoch, values=figures))
        self.run.journal.emit(MetricEvent(stage=self.stage.stage, epoch=epoch, values=figures))

    def wants_checkpoint(self) -> bool:
        due = monotonic() - self.saved >= self.run.spec.checkpoint_seconds
        return due and self.run.group.is_leader

    def save(self, state: LoopState) -> None:
        self.run.save(state)
        self.saved = monotonic()
