import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from sanitizer.methods.ft_sam import FtSamStep
from sanitizer.methods.sharpness import perturbation
from sanitizer.randomness import make_generator
from sanitizer.spec import FtSamConfig
from tests.sanitizer.methods import runs
from tests.sanitizer.methods.networks import batch, in_doubles, share_right, trained

METHOD = {
    "name": "ft_sam",
    "training": {
        "phases": [{"epochs": 2, "learning_rate": 0.01}, {"epochs": 1, "learning_rate": 0.001}],
        "batch_size": 40,
        **runs.PLAIN,
    },
    "rho": 1.0,
}


def plain_gradients(network: nn.Module, rho: float, smoothing: float) -> dict[str, Tensor]:
    """Equations 2, 4 and 6 of arXiv 2304.11823, number by number, one network a pass."""
    images, labels = batch()

    def gradients_at(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        logits = functional_call(network, {**leaves, **buffers}, (images,))
        classes = logits.shape[1]
        wanted = torch.full_like(logits, smoothing / classes)
        for row, label in enumerate(labels.tolist()):
            wanted[row, label] += 1 - smoothing
        loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    weights = {name: value.detach() for name, value in network.named_parameters()}
    gradients = gradients_at(weights)
    squares = 0.0
    for name, weight in weights.items():
        for w, g in zip(weight.flatten().tolist(), gradients[name].flatten().tolist(), strict=True):
            squares += (abs(w) * g) ** 2
    moved = {
        name: weight + rho * weight**2 * gradients[name] / math.sqrt(squares)
        for name, weight in weights.items()
    }
    return gradients_at(moved)


@pytest.mark.parametrize(("rho", "smoothing"), [(2.0, 0.1), (0.3, 0.0)])
def test_gradient_is_that_of_the_formulas_written_out(rho: float, smoothing: float) -> None:
    network = in_doubles()
    expected = plain_gradients(network, rho, smoothing)
    config = FtSamConfig(rho=rho, label_smoothing=smoothing)
    FtSamStep(network, config).backward(*batch())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_weights_are_where_they_were_and_the_loss_told_is_theirs() -> None:
    network, twin = in_doubles(), in_doubles()
    step = FtSamStep(network, FtSamConfig(rho=5, label_smoothing=0))
    images, labels = batch()
    output = step.backward(images, labels)
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(output.loss, functional.cross_entropy(twin(images), labels))


def test_batch_norm_counts_the_first_pass_alone() -> None:
    network, twin = in_doubles(), in_doubles()
    FtSamStep(network, FtSamConfig(rho=5)).backward(*batch())
    twin(batch()[0])
    for (name, mine), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_perturbation_reaches_the_border_of_the_ball_and_raises_the_loss_more_than_others() -> None:
    generator = make_generator(2)
    weights = [nn.Parameter(torch.randn(n, generator=generator).double()) for n in (3, 5)]
    gradients = [torch.randn(n, generator=generator).double() for n in (3, 5)]
    found = torch.cat(perturbation(weights, gradients, 0.7))
    scale, gradient = torch.cat([w.detach().abs() for w in weights]), torch.cat(gradients)
    assert (found / scale).norm().item() == pytest.approx(0.7)
    for _ in range(200):
        other = torch.randn(8, generator=generator).double()
        other *= 0.7 / other.norm()
        assert gradient @ (other * scale) < gradient @ found


def test_gradient_of_zeros_moves_nothing() -> None:
    found = perturbation([nn.Parameter(torch.ones(3))], [torch.zeros(3)], 2.0)
    assert found[0].eq(0).all()


def test_parameters_that_no_loss_reaches_get_no_gradient() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(64, 10)
            self.aside = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.used(images.flatten(1))
            return logits

    network = Aside().double()
    FtSamStep(network, FtSamConfig()).backward(*batch())
    assert network.aside.weight.grad is None
    assert network.used.weight.grad is not None


def test_trained_network_keeps_most_of_its_accuracy() -> None:
    network = trained()
    before = share_right(network)
    state, figures = runs.run(METHOD, network)
    assert not runs.same(state, network.state_dict())
    network.load_state_dict(state)
    assert before > 0.85
    assert share_right(network) > before - 0.05
    assert len(figures) == 3


@pytest.mark.parametrize("die_after", [2, 5])
def test_run_that_is_killed_ends_in_the_same_bits(die_after: int) -> None:
    whole, figures = runs.run(METHOD, trained())
    killed, again = runs.run(METHOD, trained(), die_after=die_after)
    assert runs.same(whole, killed)
    assert figures == again
