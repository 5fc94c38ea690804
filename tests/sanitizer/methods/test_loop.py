import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.errors import TrainingDiverged
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.methods.step import Step, StepOutput
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Phase, Training
from tests.sanitizer.builders import digits

TRAINING = Training(
    phases=(Phase(epochs=2, learning_rate=0.1), Phase(epochs=1, learning_rate=0.01)),
    batch_size=16,
    crop_padding=1,
    horizontal_flip=True,
    cutout_size=2,
)

SEED = (0, "test")


class Killed(Exception):
    pass


class Recorder(LoopHooks):
    """Saves after every step, as a file would, and dies after a given number of them."""

    def __init__(self, die_after: int | None = None) -> None:
        self.steps = 0
        self.die_after = die_after
        self.saved = b""
        self.epochs: list[tuple[int, dict[str, float]]] = []

    def wants_checkpoint(self) -> bool:
        return True

    def on_step(self, epoch: int, step: int, steps: int) -> None:  # noqa: ARG002
        self.steps += 1
        if self.steps == self.die_after:
            raise Killed

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        self.epochs.append((epoch, values))

    def save(self, state: LoopState) -> None:
        buffer = io.BytesIO()
        torch.save(vars(state), buffer)
        self.saved = buffer.getvalue()


def network() -> nn.Module:
    return build_network("wrn-10-1", 10, 1, generator=make_generator(0))


def batches() -> Batches:
    images, labels = digits(0, 60)
    image_set = ImageSet.from_arrays(images, labels)
    return Batches(image_set, TRAINING, 16, torch.device("cpu"), (0, "test"))


def figures(recorder: Recorder) -> list[tuple[int, dict[str, float]]]:
    return [
        (epoch, {name: value for name, value in values.items() if name != "seconds"})
        for epoch, values in recorder.epochs
    ]


@pytest.mark.parametrize("die_after", [1, 3, 4, 5, 8, 11])
def test_a_run_killed_at_any_step_ends_as_one_that_was_not(die_after: int) -> None:
    whole, whole_hooks = network(), Recorder()
    train(FinetuneStep(whole), batches(), TRAINING, SEED, hooks=whole_hooks)

    killed, hooks = network(), Recorder(die_after)
    with pytest.raises(Killed):
        train(FinetuneStep(killed), batches(), TRAINING, SEED, hooks=hooks)
    state = None
    if hooks.saved:
        state = LoopState(**torch.load(io.BytesIO(hooks.saved), weights_only=True))
    resumed_from = state.epoch if state else 0
    resumed, later_hooks = network(), Recorder()
    train(FinetuneStep(resumed), batches(), TRAINING, SEED, state=state, hooks=later_hooks)

    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert figures(later_hooks) == figures(whole_hooks)[resumed_from:]


class Dropping(nn.Module):
    """A network with layers that draw random numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def dropping() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dropping()


def test_dropout_draws_the_same_after_an_interruption_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    whole, hooks = dropping(), Recorder(die_after=6)
    train(FinetuneStep(whole), batches(), TRAINING, SEED)
    with pytest.raises(Killed):
        train(FinetuneStep(dropping()), batches(), TRAINING, SEED, hooks=hooks)
    state = LoopState(**torch.load(io.BytesIO(hooks.saved), weights_only=True))
    resumed = dropping()
    train(FinetuneStep(resumed), batches(), TRAINING, SEED, state=state)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_depends_on_the_seed() -> None:
    first, second = dropping(), dropping()
    train(FinetuneStep(first), batches(), TRAINING, SEED)
    train(FinetuneStep(second), batches(), TRAINING, (1, "test"))
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_training_lowers_the_loss_and_tells_the_learning_rate_of_each_epoch() -> None:
    hooks = Recorder()
    train(FinetuneStep(network()), batches(), TRAINING, SEED, hooks=hooks)
    epochs = [values for _epoch, values in hooks.epochs]
    assert [values["learning_rate"] for values in epochs] == [0.1, 0.1, 0.01]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[0]["loss"] == pytest.approx(epochs[0]["cross_entropy"])
    assert 0 <= epochs[0]["train_accuracy"] <= 1


class Telling(Step):
    """Tells of the first half of each batch: of the nth, n images right and a loss of n."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 10))
        self.begun: list[tuple[int, int]] = []
        self.announced: list[list[Tensor]] = []

    def begin_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.announced.append([labels for _, labels in batches])

    def begin_step(self, epoch: int, step: int) -> None:
        self.begun.append((epoch, step))

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        _, step = self.begun[-1]
        told = len(labels) // 2
        said = torch.where(torch.arange(told) <= step, labels[:told], (labels[:told] + 1) % 10)
        nothing = 0 * self.network(images.flatten(1)).sum()
        logits = nn.functional.one_hot(said, 10).float()
        return StepOutput(logits, {"first": nothing + step, "second": nothing + 1})


def test_figures_of_an_epoch_are_means_over_its_images() -> None:
    hooks = Recorder()
    train(Telling(), batches(), TRAINING, SEED, hooks=hooks)
    sizes, images = (16, 16, 16, 12), 60
    for _epoch, values in hooks.epochs:
        losses = sum(size * step for step, size in enumerate(sizes)) / images
        assert values["first"] == pytest.approx(losses)
        assert values["second"] == 1
        assert values["loss"] == pytest.approx(losses + 1)
        # Of eight that are told of 1, 2 and 3 are right, and of six 4.
        right = sum(size * (1 + step) / (size // 2) for step, size in enumerate(sizes))
        assert values["train_accuracy"] == pytest.approx(right / images)


def test_a_step_hears_of_every_epoch_its_own_batches_and_of_every_step_its_number() -> None:
    step, data = Telling(), batches()
    train(step, data, TRAINING, SEED)
    assert step.begun == [(epoch, number) for epoch in range(3) for number in range(4)]
    assert len(step.announced) == 3
    for epoch, announced in enumerate(step.announced):
        for labels, (_, expected) in zip(announced, data.epoch(epoch), strict=True):
            assert torch.equal(labels, expected)


def test_steps_are_those_of_plain_sgd_written_out() -> None:
    data = batches()
    training = TRAINING.model_copy(update={"phases": (Phase(epochs=1, learning_rate=0.1),)})
    ours = network()
    train(FinetuneStep(ours), data, training, SEED)

    plain = network().train()
    velocity = [torch.zeros_like(p) for p in plain.parameters()]
    first = True
    for images, labels in data.epoch(0):
        plain.zero_grad()
        loss = torch.nn.functional.cross_entropy(plain(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        with torch.no_grad():
            for parameter, v in zip(plain.parameters(), velocity, strict=True):
                assert parameter.grad is not None
                gradient = parameter.grad + 1e-4 * parameter
                v.copy_(gradient if first else 0.9 * v + gradient)
                parameter.sub_(0.1 * (gradient + 0.9 * v))
        first = False
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class _Poisoned:
    """Batches of which one holds a number that is none."""

    steps_per_epoch = 1

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002
        yield torch.full((4, 1, 8, 8), float("nan")), torch.arange(4)


def test_a_statistic_that_is_not_a_number_ends_the_training_though_the_loss_is_one() -> None:
    class Spoilt(nn.Module):
        """A batch norm takes no notice of its statistics as long as it trains."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(1), nn.Linear(64, 10)
            assert self.norm.running_var is not None
            self.norm.running_var.fill_(float("inf"))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.last(self.norm(images).flatten(1))
            return logits

    with pytest.raises(TrainingDiverged, match="not all weights are finite"):
        train(FinetuneStep(Spoilt()), batches(), TRAINING, SEED)


def test_a_loss_that_is_not_a_number_ends_the_training_with_advice() -> None:
    with pytest.raises(TrainingDiverged, match=r"Lower the learning rate\.") as raised:
        train(FinetuneStep(network()), _Poisoned(), TRAINING, SEED)
    assert raised.value.data == {"epoch": 1}
