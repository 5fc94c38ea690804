from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.cost.workload import hardened_passes
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.hardening import ASCENT, HardenedStep, no_statistics
from sanitizer.methods.plan import Bench, TrainingStage, plan
from sanitizer.methods.random_triggers import pictures_of, with_random_triggers
from sanitizer.methods.sharpness import part_of, perturbation
from sanitizer.networks.taps import find_taps
from sanitizer.randomness import make_generator
from sanitizer.spec import ArgdConfig, Hardening
from tests.sanitizer.methods import runs
from tests.sanitizer.methods.networks import batch, in_doubles, share_right, trained

TRAINING = {
    "least_epoch_images": 0,
    "phases": [{"epochs": 2, "learning_rate": 0.01}, {"epochs": 1, "learning_rate": 0.001}],
    "batch_size": 40,
    **runs.PLAIN,
}
METHOD = {
    "name": "argd",
    "teacher": TRAINING,
    "student": TRAINING,
    # Of 8 x 8 images the maps have few cells, and differ the more.
    "node_weights": [20, 50, 20],
    "student_from": "teacher",
    "hardening": {"rho": 0.5, "perturbation": 20, "random_triggers": True},
    "student_hardening": {
        "rho": 0.5,
        "ascent_share": 0.3,
        "least_ascent_images": 4,
        "random_triggers": True,
        "found_share": 0.5,
        "trigger_candidates": 3,
    },
}
BOUND = 20 / 255
PICTURES = pictures_of(runs.clean_images(), 0)


def hardened(network: nn.Module, **settings: float | bool) -> HardenedStep:
    return HardenedStep(
        FinetuneStep(network), Hardening.model_validate(settings), (0, "test"), PICTURES
    )


def root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def test_losses_are_those_of_the_step_and_of_the_first_images_perturbed() -> None:
    network, twin = in_doubles(), in_doubles()
    step = hardened(network, perturbation=20, perturbed_share=0.5, perturbed_weight=0.7)
    images, labels = batch(8)

    losses = step(images, labels).losses

    perturbed = (images[:4] + step.network.perturbation).clamp(0, 1)
    assert losses["cross_entropy"] == functional.cross_entropy(twin(images), labels)
    expected = 0.7 * functional.cross_entropy(twin(perturbed), labels[:4])
    torch.testing.assert_close(losses["perturbed"], expected)


def test_statistics_of_batch_norms_are_those_of_clean_images() -> None:
    network, twin = in_doubles(), in_doubles()
    hardened(network, perturbation=20, rho=1).backward(*batch(8))
    twin(batch(8)[0])
    for (name, mine), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_each_step_moves_the_perturbation_up_the_slope_of_its_loss() -> None:
    network, twin = in_doubles(), in_doubles()
    step = hardened(network, perturbation=20, perturbed_share=1)
    images, labels = batch(8)
    step(images, labels)
    before = step.network.perturbation.clone().requires_grad_()
    loss = functional.cross_entropy(twin((images + before).clamp(0, 1)), labels)
    (slope,) = torch.autograd.grad(loss, before)

    step.backward(images, labels)

    expected = before.detach() + ASCENT * BOUND * slope / root_mean_square(slope)
    assert root_mean_square(expected) < BOUND
    torch.testing.assert_close(step.network.perturbation, expected)


def test_the_perturbation_stays_within_its_bound() -> None:
    step = hardened(in_doubles(), perturbation=20)
    sizes = []
    for _ in range(12):
        step.backward(*batch(8))
        sizes.append(root_mean_square(step.network.perturbation))
    assert max(sizes) <= BOUND * (1 + 1e-9)
    assert sizes[-1] == pytest.approx(BOUND)


def test_gradients_are_those_of_the_sum_of_losses() -> None:
    network, twin = in_doubles(), in_doubles()
    step = hardened(network, perturbation=20, perturbed_share=0.5, perturbed_weight=0.7)
    images, labels = batch(8)
    step(images, labels)
    perturbed = (images[:4] + step.network.perturbation).clamp(0, 1)
    whole = functional.cross_entropy(twin(images), labels)
    whole = whole + 0.7 * functional.cross_entropy(twin(perturbed), labels[:4])
    whole.backward()  # type: ignore[no-untyped-call]  # torch's own

    step.backward(images, labels)

    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_without_a_perturbation_it_is_a_sharpness_aware_step() -> None:
    step = hardened(in_doubles(), rho=1)
    assert list(step(*batch(8)).losses) == ["cross_entropy"]
    step.backward(*batch(8))
    assert not step.network.perturbation.numel()


def test_random_triggers_are_new_in_each_step_and_the_same_at_worse_weights() -> None:
    network, twin = in_doubles(), in_doubles()
    step = hardened(network, random_triggers=True, perturbed_share=0.5, perturbed_weight=0.7)
    images, labels = batch(8)

    step.begin_step(0, 3)
    losses = step(images, labels).losses
    again = step(images, labels).losses
    step.begin_step(0, 4)
    later = step(images, labels).losses

    drawn = make_generator(0, "test", "triggers", 0, 3)
    everybody = torch.ones(4, dtype=torch.bool)
    changed, _ = with_random_triggers(images[:4], drawn, everybody, PICTURES)
    expected = 0.7 * functional.cross_entropy(twin(changed), labels[:4])
    torch.testing.assert_close(losses["perturbed"], expected)
    assert torch.equal(losses["perturbed"], again["perturbed"])
    assert not torch.equal(losses["perturbed"], later["perturbed"])
    step.backward(images, labels)
    assert not step.network.perturbation.numel()  # none was asked for


@pytest.mark.parametrize(("ascent_share", "count"), [(0.25, 2), (0.5, 4), (0.75, 6)])
def test_a_part_of_the_batch_tells_where_weights_are_worse(ascent_share: float, count: int) -> None:
    network, twin = in_doubles(), in_doubles()
    settings = {"random_triggers": True, "perturbed_share": 0.5, "perturbed_weight": 0.7}
    ascent = {"rho": 1.0, "ascent_share": ascent_share, "least_ascent_images": 2}
    step = hardened(network, **ascent, **settings)
    images, labels = batch(8)
    drawn = make_generator(0, "test", "triggers", 0, 0)
    changed, _ = with_random_triggers(images[:4], drawn, torch.ones(4, dtype=torch.bool), PICTURES)

    def loss_of(first: int) -> Tensor:
        whole = functional.cross_entropy(twin(images[:first]), labels[:first])
        some = min(first, 4)
        with no_statistics(twin):
            return whole + 0.7 * functional.cross_entropy(twin(changed[:some]), labels[:some])

    there = loss_of(count)
    parameters = list(twin.parameters())
    moves = perturbation(parameters, list(torch.autograd.grad(there, parameters)), 1.0)
    statistics = [value.clone() for value in twin.buffers()]
    with torch.no_grad():
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.add_(move)
    expected = torch.autograd.grad(loss_of(8), parameters)

    step.begin_step(0, 0)
    output = step.backward(images, labels)

    torch.testing.assert_close(output.loss, there)
    assert len(output.logits) == count
    for mine, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.grad, gradient, rtol=1e-9, atol=1e-12)
    for value, kept in zip(network.buffers(), statistics, strict=True):
        assert torch.equal(value, kept)


def test_a_part_of_a_batch_has_no_fewer_images_than_it_must() -> None:
    assert [part_of(size, 0.25) for size in (1, 2, 5, 8, 30)] == [1, 2, 2, 2, 8]
    assert [part_of(size, 0.25, 32) for size in (4, 64, 196, 256)] == [4, 32, 49, 64]


def test_where_weights_are_not_made_worse_every_image_is_descended_by() -> None:
    """There is no ascent then, and so no share of a batch for it."""
    network, twin = in_doubles(), in_doubles()
    part = {"rho": 0.0, "ascent_share": 0.25, "least_ascent_images": 2}
    step = hardened(network, random_triggers=True, perturbed_share=0.5, **part)
    whole = hardened(twin, random_triggers=True, perturbed_share=0.5)
    images, labels = batch(8)

    output = step.backward(images, labels)

    assert len(output.logits) == 8
    whole(images, labels).loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_few_images_are_not_parted() -> None:
    step = hardened(in_doubles(), rho=1.0, ascent_share=0.25, random_triggers=True)
    assert len(step.backward(*batch(8)).logits) == 8


def test_a_part_of_each_batch_costs_less_than_all_of_it() -> None:
    whole = Hardening(rho=1, random_triggers=True, perturbed_share=0.5)
    some = whole.model_copy(update={"ascent_share": 0.25})
    none = whole.model_copy(update={"rho": 0.0})
    costs = [hardened_passes(3, each) for each in (whole, some, none)]
    assert costs == [9, 4.5 + 0.25 * 6, 4.5]


def test_a_perturbation_is_put_on_top_of_random_triggers() -> None:
    network, twin = in_doubles(), in_doubles()
    step = hardened(network, random_triggers=True, perturbation=20, perturbed_share=0.5)
    images, labels = batch(8)
    losses = step(images, labels).losses
    drawn = make_generator(0, "test", "triggers", 0, 0)
    everybody = torch.ones(4, dtype=torch.bool)
    changed, _ = with_random_triggers(images[:4], drawn, everybody, PICTURES)
    perturbed = (changed + step.network.perturbation).clamp(0, 1)
    expected = 0.25 * functional.cross_entropy(twin(perturbed), labels[:4])
    torch.testing.assert_close(losses["perturbed"], expected)


def test_no_statistics_are_kept_in_the_block_and_are_again_after_it() -> None:
    network = in_doubles()
    before = {name: value.clone() for name, value in network.named_buffers()}
    with no_statistics(network):
        network(batch(8)[0])
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network(batch(8)[0])
    assert not all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_what_does_not_train_is_left_alone_in_the_block() -> None:
    network = in_doubles().eval()
    expected = network(batch(8)[0])
    with no_statistics(network):
        assert torch.equal(network(batch(8)[0]), expected)


def test_the_step_within_hears_of_all_that_the_loop_says() -> None:
    """Feature shift tuning puts its classifier right after each update, for one."""
    heard: list[object] = []

    class Hearing(FinetuneStep):
        def begin_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
            heard.append(["epoch", *batches])

        def begin_step(self, epoch: int, step: int) -> None:
            heard.append(("step", epoch, step))

        def updated(self) -> None:
            heard.append("updated")

        @contextmanager
        def attached(self) -> Iterator[None]:
            heard.append("attached")
            yield
            heard.append("let go")

    step = HardenedStep(Hearing(in_doubles()), Hardening(rho=0.5), (0, "test"))
    images, labels = batch(8)
    with step.attached():
        step.begin_epoch(iter([(images, labels)]))
        step.begin_step(2, 5)
        step.backward(images, labels)
        step.updated()
    assert heard[0] == "attached"
    assert heard[2:] == [("step", 2, 5), "updated", "let go"]
    assert heard[1] == ["epoch", (images, labels)]


def test_trained_network_keeps_most_of_its_accuracy() -> None:
    network = trained()
    before = share_right(network)
    state, figures = runs.run(METHOD, network)
    network.load_state_dict(state)
    assert before > 0.85
    assert share_right(network) > before - 0.1
    assert all("perturbed" in epoch for epoch in figures)


@pytest.mark.parametrize("die_after", [2, 5])
def test_run_that_is_killed_ends_in_the_same_bits(die_after: int) -> None:
    whole, figures = runs.run(METHOD, trained())
    killed, again = runs.run(METHOD, trained(), die_after=die_after)
    assert runs.same(whole, killed)
    assert figures == again


def test_labels_are_smoothed_for_teacher_and_student_alike() -> None:
    config = ArgdConfig(label_smoothing=0.2, hardening=Hardening(), student_hardening=Hardening())
    images, labels = batch()
    student, teacher = in_doubles(0), in_doubles(1)
    bench = Bench(student, teacher, find_taps(deepcopy(student), "wrn-10-1", (8, 8), 1), seed=0)
    for stage in plan(config):
        assert isinstance(stage, TrainingStage)
        step = stage.make_step(bench)
        with step.attached():
            losses = step(images, labels).losses
        expected = functional.cross_entropy(step.network(images), labels, label_smoothing=0.2)
        torch.testing.assert_close(losses["cross_entropy"], expected)
