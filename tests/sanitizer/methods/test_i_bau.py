from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional as calculus
from torch.func import functional_call
from torch.nn import functional
from torchvision.models import VisionTransformer

from sanitizer.methods.i_bau import IBauStep, implicit_gradient
from sanitizer.networks.registry import build_network
from sanitizer.networks.torchvision_networks import AUXILIARY
from sanitizer.randomness import make_generator
from sanitizer.spec import IBauConfig
from tests.sanitizer.methods import runs
from tests.sanitizer.methods.networks import share_right, trained

METHOD: dict[str, Any] = {
    "name": "i_bau",
    "training": {
        "phases": [{"epochs": 2, "learning_rate": 0.001}],
        "batch_size": 40,
        **runs.PLAIN,
    },
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=make_generator(seed)).double()


def jacobian(of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    found: Tensor = calculus.jacobian(of, at)  # type: ignore[no-untyped-call]  # torch's own
    return found


def hessian(of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    found: Tensor = calculus.hessian(of, at)  # type: ignore[no-untyped-call]  # torch's own
    return found


# --- A quadratic problem, of which the answer is known -------------------------------------------


class Quadratic:
    """max over d of -d A d / 2 + d B t - penalty d d: its d(t) is (A + 2 penalty)^-1 B t."""

    def __init__(self, penalty: float) -> None:
        root = random(4, 4, seed=1)
        self.matrix = root @ root.T + torch.eye(4).double()
        self.mixed, self.theta = random(4, 3, seed=2), random(3, seed=3).requires_grad_()
        self.full = self.matrix + 2 * penalty * torch.eye(4).double()
        self.aim = random(4, seed=4)
        self.delta = torch.linalg.solve(self.full, self.mixed @ self.theta.detach())
        self.delta.requires_grad_()
        self.towards = (self.delta - self.aim).detach()
        loss = -self.delta @ self.matrix @ self.delta / 2 + self.delta @ self.mixed @ self.theta
        (self.slope,) = torch.autograd.grad(loss, self.delta, create_graph=True)

    def found(self, steps: int, rate: float, penalty: float) -> Tensor:
        (gradient,) = implicit_gradient(
            self.slope,
            self.delta,
            [self.theta],
            self.towards,
            steps=steps,
            rate=rate,
            penalty=penalty,
        )
        assert gradient is not None
        return gradient


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_implicit_gradient_comes_to_the_exact_one(penalty: float) -> None:
    problem = Quadratic(penalty)
    # Of |d(t) - aim|^2 / 2 by t.
    exact = problem.mixed.T @ torch.linalg.solve(problem.full, problem.towards)
    found = problem.found(3000, 0.02, penalty)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)
    rough = Quadratic(penalty).found(5, 0.02, penalty)
    assert (rough - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_steps_are_the_first_terms_of_the_series(steps: int) -> None:
    problem, rate = Quadratic(0.3), 0.1
    moved = torch.eye(4).double() - rate * problem.full
    solved = sum(torch.linalg.matrix_power(moved, k) @ problem.towards for k in range(steps))
    expected = rate * problem.mixed.T @ solved
    torch.testing.assert_close(problem.found(steps, rate, 0.3), expected, rtol=1e-9, atol=1e-12)


# --- A whole step against dense matrices ---------------------------------------------------------


def smooth() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Softplus(), nn.Linear(5, 3))
    return layers.double()


def batch() -> tuple[Tensor, Tensor]:
    images = torch.rand(8, 1, 3, 4, generator=make_generator(1)).double()
    return images, torch.arange(8) % 3


def test_step_is_that_of_dense_jacobians() -> None:
    config = IBauConfig(
        fixed_point_steps=4, fixed_point_rate=0.2, perturbation_penalty=0.05, perturbed_share=0.4
    )
    network, (images, labels) = smooth(), batch()
    step = IBauStep(network, config)
    delta = random(1, 1, 3, 4, seed=5) * 0.3
    step.network.perturbation = delta
    output = step.backward(images, labels)

    shapes = {name: value.shape for name, value in network.named_parameters()}
    theta = torch.cat([value.detach().flatten() for value in network.parameters()])

    def logits(flat: Tensor, seen: Tensor) -> Tensor:
        parts = torch.split_with_sizes(flat, [shape.numel() for shape in shapes.values()])
        weights = {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}
        found: Tensor = functional_call(network, weights, (seen,))
        return found

    def outer(d: Tensor, flat: Tensor) -> Tensor:
        seen = torch.cat([images[:3] + d.view(1, 1, 3, 4), images[3:]])  # 0.4 of 8
        return functional.cross_entropy(logits(flat, seen), labels)

    def ascended(d: Tensor, flat: Tensor) -> Tensor:
        return functional.cross_entropy(logits(flat, images + d.view(1, 1, 3, 4)), labels)

    d = delta.flatten()
    curvature = hessian(lambda x: ascended(x, theta), d)
    of_map = torch.eye(12).double() + 0.2 * (curvature - 2 * 0.05 * torch.eye(12).double())

    def slope(flat: Tensor) -> Tensor:
        x = d.clone().requires_grad_()
        found: Tensor = torch.autograd.grad(ascended(x, flat), x, create_graph=True)[0]
        return found

    mixed = jacobian(slope, theta)
    by_delta = jacobian(lambda x: outer(x, theta), d)
    solved = torch.zeros(12).double()
    for _ in range(4):
        solved = of_map.T @ solved + by_delta
    expected = jacobian(lambda x: outer(d, x), theta) + 0.2 * mixed.T @ solved
    found = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(output.loss, outer(d, theta), rtol=1e-12, atol=0)


# --- The perturbation ----------------------------------------------------------------------------


def plain_perturbation(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], rate: float, penalty: float
) -> Tensor:
    found = torch.zeros(1, 1, 3, 4).double()
    for images, _ in batches:
        said = network(images).argmax(dim=1)

        def lost(delta: Tensor, images: Tensor = images, said: Tensor = said) -> Tensor:
            return functional.cross_entropy(network(images + delta), said) - penalty * (
                delta.square().sum()
            )

        found = found + rate * jacobian(lost, found)
    return found


@pytest.mark.parametrize("bound", [None, 0.5])
def test_perturbation_is_ascended_batch_by_batch_and_brought_back_into_its_ball(
    bound: float | None,
) -> None:
    images, labels = batch()
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    network = smooth()
    config = IBauConfig(perturbation_rate=3, perturbation_penalty=0.02, perturbation_bound=bound)
    step = IBauStep(network, config)
    step.begin_epoch(iter(batches))
    expected = plain_perturbation(network, batches, 3, 0.02)
    assert expected.norm() > 0.5
    if bound is not None:
        expected = expected * (bound / expected.norm())
    torch.testing.assert_close(step.network.perturbation, expected, rtol=1e-10, atol=1e-13)


def test_perturbation_misleads_a_trained_network_more_than_chance_of_its_size() -> None:
    network = trained()
    step = IBauStep(network, IBauConfig(perturbation_bound=2))
    image_set = runs.clean_images()
    images = torch.from_numpy(image_set.images.copy()).float() / 255
    labels = torch.from_numpy(image_set.labels.copy())
    step.begin_epoch(iter([(images[k : k + 40], labels[k : k + 40]) for k in range(0, 160, 40)]))
    found = step.network.perturbation
    other = torch.randn(found.shape, generator=make_generator(0))
    other *= found.norm() / other.norm()

    def right(seen: Tensor) -> float:
        return float((network(seen).argmax(1) == labels).double().mean())

    assert right(images + found) < right(images + other) - 0.1


# --- Every kind of network -----------------------------------------------------------------------

SMALL = [
    "preact_resnet18",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "convnext_tiny",
    "googlenet",
]


def network_of(name: str) -> nn.Module:
    if name != "vit":
        return build_network(name, 4, 3, make_generator(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = VisionTransformer(64, 32, 2, 2, 16, 32, num_classes=4)
        nn.init.normal_(network.get_parameter("heads.head.weight"))  # torchvision's starts at 0
    return network


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, torch.float32) for name in [*SMALL, "vit"]),
        *((name, torch.bfloat16) for name in ["shufflenet_v2_x0_5", "squeezenet1_1", "vit"]),
    ],
)
def test_every_kind_of_network_can_be_derived_twice(name: str, precision: torch.dtype) -> None:
    network = network_of(name)
    images = torch.rand(2, 3, 64, 64, generator=make_generator(1))
    labels = torch.tensor([0, 1])
    step = IBauStep(network, IBauConfig(fixed_point_steps=2), precision)
    step.begin_epoch(iter([(images, labels)]))
    assert step.network.perturbation.norm() > 0
    step.backward(images, labels)
    unreached = [n for n, p in network.named_parameters() if p.grad is None]
    assert all(part.startswith(AUXILIARY["googlenet"]) for part in unreached), unreached
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


# --- Whole runs ----------------------------------------------------------------------------------


def test_network_is_trained_with_the_statistics_that_it_came_with() -> None:
    network = trained()
    state, figures = runs.run(METHOD, network)
    assert len(figures) == 2
    for name, value in network.state_dict().items():
        fixed = name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(state[name], value) is fixed, name


def test_trained_network_keeps_most_of_its_accuracy() -> None:
    network = trained()
    before = share_right(network)
    state, _ = runs.run(METHOD, network)
    network.load_state_dict(state)
    assert before > 0.85
    assert share_right(network) > before - 0.1


@pytest.mark.parametrize("die_after", [1, 3])
def test_run_that_is_killed_ends_in_the_same_bits(die_after: int) -> None:
    whole, figures = runs.run(METHOD, trained())
    killed, again = runs.run(METHOD, trained(), die_after=die_after)
    assert runs.same(whole, killed)
    assert figures == again
