"""The one training loop: every method, the teacher and the benchmark's victims go through it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from sanitizer.errors import TrainingDiverged
from sanitizer.methods.sgd import Descent, descending
from sanitizer.methods.step import Step
from sanitizer.parallel.batch_norm import whole_batch_norm
from sanitizer.randomness import derive_seed
from sanitizer.spec import Training


class BatchSource(Protocol):
    """What the loop needs of the data: the same batches for the same epoch and step, always."""

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images in [0, 1] and int64 labels of the steps from `start_step` on.

        The images are this process's share of the batch, the labels those of the whole.
        """
        ...


@dataclass
class LoopState:
    """All of a training run that is not in its data: what a checkpoint holds.

    `sums` are the epoch's running totals, kept as tensors so that no step waits for the device.
    """

    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Steps of the current epoch that are done."""
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    """Images of the current epoch that are in `sums`."""
    seconds: float = 0.0
    """Time spent on the current epoch, before interruptions too."""


class LoopHooks:
    """What the loop tells and asks its caller; this base does nothing."""

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """After each step: epochs done, steps done of this one, steps of an epoch."""

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        """After each epoch, with its number from 1 and its mean losses and accuracy."""

    def wants_checkpoint(self) -> bool:
        """Asked after each step."""
        return False

    def save(self, state: LoopState) -> None:
        """Keeps a checkpoint. The state's tensors are live: copy or write them before returning."""


def train(
    step: Step,
    batches: BatchSource,
    training: Training,
    seed_parts: tuple[int | str, ...],
    *,
    state: LoopState | None = None,
    hooks: LoopHooks | None = None,
    setting: str = "",
) -> None:
    """Trains `step.network` in place.

    Args:
        step: The method.
        batches: The data.
        training: Epochs, learning rates and the optimizer's settings.
        seed_parts: What dropout and stochastic depth inside the network depend on, beside epoch
            and step.
        state: Where to take up again; the result is the same as without the interruption.
        hooks: Progress, figures and checkpoints.
        setting: Where a request has the training, such as `method.training`; an error names it.

    Raises:
        TrainingDiverged: A loss or a weight is no longer finite at the end of an epoch.
    """
    hooks = hooks or LoopHooks()
    network = step.network
    progress = state or LoopState()
    if progress.network:
        network.load_state_dict(progress.network)
    device = next(network.parameters()).device
    progress.sums = {name: value.to(device) for name, value in progress.sums.items()}
    steps = batches.steps_per_epoch

    # Dropout and the like draw from torch's global generators: they are seeded for each step, so
    # that a resumed run draws what it would have drawn, and put back as they were in the end.
    devices = [device] if device.type == "cuda" else []
    with (
        step.attached(),
        whole_batch_norm(network, step.group),
        torch.random.fork_rng(devices),
        descending(network, training, progress.optimizer) as descent,
    ):

        def snapshot() -> LoopState:
            progress.network = network.state_dict()
            progress.optimizer = descent.state_dict()
            return progress

        while progress.epoch < training.epochs:
            learning_rate = training.learning_rate(progress.epoch)
            network.train()
            resumed_seconds, begun = progress.seconds, perf_counter()
            if progress.step == 0:
                own = step.group.seed_parts
                torch.manual_seed(derive_seed(*seed_parts, progress.epoch, "begin", *own))
                step.begin_epoch(batches.epoch(progress.epoch))
            for images, labels in batches.epoch(progress.epoch, progress.step):
                moment = (progress.epoch, progress.step, *step.group.seed_parts)
                torch.manual_seed(derive_seed(*seed_parts, *moment))
                step.begin_step(progress.epoch, progress.step)
                _one_step(step, descent, learning_rate, progress, images, labels)
                progress.step += 1
                progress.seconds = resumed_seconds + perf_counter() - begun
                hooks.on_step(progress.epoch, progress.step, steps)
                # The end of an epoch is saved below, once its figures are out.
                if progress.step < steps and hooks.wants_checkpoint():
                    hooks.save(snapshot())
            values = _epoch_values(progress)
            values["learning_rate"] = learning_rate
            values["seconds"] = resumed_seconds + perf_counter() - begun
            _check_finite(step, values, progress.epoch, setting)
            progress.epoch += 1
            progress.step, progress.images, progress.seconds = 0, 0, 0.0
            progress.sums = {}
            hooks.on_epoch(progress.epoch, values)
            if progress.epoch < training.epochs and hooks.wants_checkpoint():
                hooks.save(snapshot())
    network.eval()


def _one_step(
    step: Step,
    descent: Descent,
    learning_rate: float,
    progress: LoopState,
    images: Tensor,
    labels: Tensor,
) -> None:
    output = step.backward(images, labels)
    step.group.sum(descent.gradients)
    descent.step(learning_rate)
    step.updated()
    size = labels.shape[0]
    told = len(output.logits)
    correct = (output.logits.detach().argmax(dim=1) == labels[:told]).sum()
    figures = {"loss": output.loss, **output.losses, "train_accuracy": correct / told}
    for name, value in figures.items():
        total = progress.sums.get(name)
        weighted = value.detach().double() * size
        progress.sums[name] = weighted if total is None else total + weighted
    progress.images += size


def _epoch_values(progress: LoopState) -> dict[str, float]:
    return {name: total.item() / progress.images for name, total in progress.sums.items()}


def _check_finite(step: Step, values: dict[str, float], epoch: int, setting: str) -> None:
    tensors = [*step.network.parameters(), *step.network.buffers()]
    finite = torch.stack([t.isfinite().all() for t in tensors if t.is_floating_point()]).all()
    if not bool(finite) or not all(abs(value) < float("inf") for value in values.values()):
        raise TrainingDiverged(
            f"In epoch {epoch + 1} the training diverged: its loss is {values['loss']:.4g} and "
            f"{'its' if finite else 'not all'} weights are finite. Lower the learning rate"
            + (f" ({setting}.phases)." if setting else "."),
            epoch=epoch + 1,
        )
