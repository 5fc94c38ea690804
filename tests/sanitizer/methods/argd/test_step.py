import io
from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.events import Stage
from sanitizer.methods.argd.losses import edge_loss, node_loss
from sanitizer.methods.argd.step import ArgdStep
from sanitizer.methods.attention import attention_map
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.methods.plan import Bench, TrainingStage, plan
from sanitizer.networks.registry import build_network
from sanitizer.networks.taps import TapPoint, find_taps, tapped
from sanitizer.randomness import make_generator
from sanitizer.spec import ArgdConfig, NadConfig, Phase, Preset, Training
from tests.sanitizer.builders import digits

TRAINING = Training(
    phases=(Phase(epochs=1, learning_rate=0.05),), batch_size=16, crop_padding=1, cutout_size=2
)


class Killed(Exception):
    pass


class Dying(LoopHooks):
    """Saves after every step, and dies after the second."""

    saved = b""

    def on_step(self, epoch: int, step: int, steps: int) -> None:  # noqa: ARG002
        if step == 2:
            raise Killed

    def wants_checkpoint(self) -> bool:
        return True

    def save(self, state: LoopState) -> None:
        buffer = io.BytesIO()
        torch.save(vars(state), buffer)
        self.saved = buffer.getvalue()


def make_bench() -> Bench:
    student = build_network("wrn-10-1", 10, 1, generator=make_generator(0))
    teacher = build_network("wrn-10-1", 10, 1, generator=make_generator(1))
    return Bench(student, teacher, find_taps(student, "wrn-10-1", (8, 8), 1), seed=3)


def distilling(config: ArgdConfig) -> TrainingStage:
    stage = plan(config)[1]
    assert isinstance(stage, TrainingStage)
    assert stage.stage is Stage.DISTIL
    return stage


def batches() -> Batches:
    image_set = ImageSet.from_arrays(*digits(0, 60))
    return Batches(image_set, TRAINING, 16, torch.device("cpu"), (0, "test"))


def trained(config: ArgdConfig, bench: Bench, **how: object) -> ArgdStep:
    step = distilling(config).make_step(bench)
    assert isinstance(step, ArgdStep)
    train(step, batches(), TRAINING, (0, "test"), **how)  # type: ignore[arg-type]  # passed on
    return step


def projections(step: ArgdStep) -> dict[str, Tensor]:
    return deepcopy(step.embedding.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.fixture(params=["random", "trained"])
def config(request: pytest.FixtureRequest) -> ArgdConfig:
    return ArgdConfig(preset=Preset.PAPER, student=TRAINING, projections=request.param)


def test_projections_move_if_they_are_trained_and_only_then(config: ArgdConfig) -> None:
    bench = make_bench()
    before = projections(trained(config, make_bench(), state=LoopState(epoch=1)))
    after = projections(trained(config, bench))
    assert same(before, after) == (config.projections == "random")


def test_the_student_is_what_is_given_back_without_projections(config: ArgdConfig) -> None:
    bench = make_bench()
    keys = bench.student.state_dict().keys()
    untrained = deepcopy(bench.student.state_dict())
    trained(config, bench)
    assert bench.student.state_dict().keys() == keys
    assert not same(untrained, bench.student.state_dict())
    assert not any("embedding" in name for name in keys)


def test_a_killed_run_ends_as_one_that_was_not(config: ArgdConfig) -> None:
    whole, dying, taken_up = make_bench(), Dying(), make_bench()
    trained(config, whole)
    with pytest.raises(Killed):
        trained(config, make_bench(), hooks=dying)
    state = LoopState(**torch.load(io.BytesIO(dying.saved), weights_only=True))
    assert state.step == 1
    trained(config, taken_up, state=state)
    assert same(taken_up.student.state_dict(), whole.student.state_dict())


def test_a_student_may_start_as_the_teacher() -> None:
    bench = make_bench()
    distilling(ArgdConfig(preset=Preset.PAPER, student_from="teacher")).make_step(bench)
    assert same(bench.student.state_dict(), bench.teacher.state_dict())


def test_a_student_starts_as_the_suspect_model_unless_it_is_told_otherwise() -> None:
    bench, untouched = make_bench(), make_bench()
    distilling(ArgdConfig(preset=Preset.PAPER)).make_step(bench)
    assert same(bench.student.state_dict(), untouched.student.state_dict())
    assert not same(bench.student.state_dict(), bench.teacher.state_dict())


def test_only_the_chosen_taps_are_nodes() -> None:
    bench = make_bench()
    config = ArgdConfig(
        preset=Preset.PAPER, taps=(2, 0), embedding_weight=0, node_weights=(3.0, 5.0)
    )
    images, labels = next(iter(batches().epoch(0)))
    chosen = [bench.taps[0], bench.taps[2]]
    student = maps_of(deepcopy(bench.student), chosen, images)
    teacher = maps_of(bench.teacher.eval(), chosen, images)

    step = distilling(config).make_step(bench)
    bench.student.train()
    with step.attached():
        losses = step(images, labels).losses

    torch.testing.assert_close(losses["node"], node_loss(student, teacher, (3.0, 5.0)))
    torch.testing.assert_close(losses["edge"], edge_loss(student, teacher))


@torch.no_grad()
def maps_of(network: nn.Module, taps: Sequence[TapPoint], images: Tensor) -> list[Tensor]:
    with tapped(network, taps) as found:
        network(images)
        return [attention_map(features) for features in found.take()]


def test_each_loss_has_the_weight_that_was_asked_for() -> None:
    """The published weights of three taps, one factor for all nodes, and one each for the rest."""
    bench = make_bench()
    config = ArgdConfig(preset=Preset.PAPER, node_scale=0.5, edge_weight=3, embedding_weight=0.25)
    images, labels = next(iter(batches().epoch(0)))
    student = maps_of(deepcopy(bench.student), bench.taps, images)
    teacher = maps_of(bench.teacher.eval(), bench.taps, images)

    step = distilling(config).make_step(bench)
    assert isinstance(step, ArgdStep)
    bench.student.train()
    with step.attached():
        losses = step(images, labels).losses

    expected = {
        "node": node_loss(student, teacher, (1000.0, 2500.0, 1000.0)),
        "edge": 3 * edge_loss(student, teacher),
        # The student's nodes are asked how near they are to each of the teacher's.
        "embedding": 0.25 * step.embedding(student, teacher).sum(),
    }
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, msg=name)
    assert losses.keys() == {"cross_entropy", *expected}


def test_nad_aligns_the_nodes_alone_by_the_weights_of_its_rerun() -> None:
    bench = make_bench()
    images, labels = next(iter(batches().epoch(0)))
    student = maps_of(deepcopy(bench.student), bench.taps, images)
    teacher = maps_of(bench.teacher.eval(), bench.taps, images)

    stage = plan(NadConfig())[1]
    assert isinstance(stage, TrainingStage)
    step = stage.make_step(bench)
    bench.student.train()
    with step.attached():
        losses = step(images, labels).losses

    assert losses.keys() == {"cross_entropy", "node"}
    torch.testing.assert_close(losses["node"], node_loss(student, teacher, (500.0, 1000.0, 1000.0)))


def test_a_teacher_gives_what_it_gives_in_use_and_learns_nothing() -> None:
    bench = make_bench()
    before = deepcopy(bench.teacher.state_dict())
    step = distilling(ArgdConfig(preset=Preset.PAPER)).make_step(bench)
    assert isinstance(step, ArgdStep)
    images, labels = next(iter(batches().epoch(0)))
    step.teacher.train()
    bench.student.train()
    with step.attached():
        step(images, labels).loss.backward()  # type: ignore[no-untyped-call]  # torch's own

    assert same(bench.teacher.state_dict(), before)
    assert not any(module.training for module in bench.teacher.modules())
    assert all(parameter.grad is None for parameter in bench.teacher.parameters())
    assert any(parameter.grad is not None for parameter in bench.student.parameters())


def test_a_tap_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected taps below 3, got 3"):
        distilling(ArgdConfig(preset=Preset.PAPER, taps=(3,))).make_step(make_bench())
