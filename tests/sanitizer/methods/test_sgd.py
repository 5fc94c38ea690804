from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sanitizer.methods.flat import FlatParameters
from sanitizer.methods.sgd import descending
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Training


def network() -> nn.Module:
    made = build_network("wrn-10-1", 10, 3, generator=make_generator(0))
    return made.to(memory_format=torch.channels_last)


def losses(network: nn.Module) -> Iterator[Tensor]:
    generator = make_generator(1)
    for _ in range(5):
        images = torch.randn(8, 3, 16, 16, generator=generator)
        yield nn.functional.cross_entropy(network(images), torch.arange(8))


@pytest.mark.parametrize(
    "training",
    [
        Training(),
        Training(momentum=0),
        Training(weight_decay=0),
        Training(momentum=0, weight_decay=0),
    ],
    ids=["both", "no momentum", "no decay", "neither"],
)
def test_it_moves_parameters_as_the_optimizer_of_torch(training: Training) -> None:
    mine, theirs = network(), network()
    optimizer = torch.optim.SGD(
        theirs.parameters(),
        lr=0.05,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
    )
    for loss in losses(theirs):
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
    with descending(mine, training) as sgd:
        for loss in losses(mine):
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            sgd.step(0.05)

    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "training",
    [Training(optimizer="adam"), Training(optimizer="adam", momentum=0, weight_decay=0)],
    ids=["both", "neither"],
)
def test_adam_moves_parameters_as_that_of_torch(training: Training) -> None:
    mine, theirs = network(), network()
    optimizer = torch.optim.Adam(
        theirs.parameters(),
        lr=0.001,
        betas=(training.momentum, 0.999),
        weight_decay=training.weight_decay,
    )
    for loss in losses(theirs):
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
    with descending(mine, training) as adam:
        for loss in losses(mine):
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            adam.step(0.001)

    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("training", [Training(), Training(optimizer="adam")], ids=["sgd", "adam"])
def test_it_goes_on_from_a_saved_state_to_the_same_bits(training: Training) -> None:
    whole, first = network(), network()
    with descending(whole, training) as sgd:
        for loss in losses(whole):
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            sgd.step(0.05)

    steps = losses(first)
    with descending(first, training) as sgd:
        for _ in range(2):
            next(steps).backward()  # type: ignore[no-untyped-call]  # torch's own
            sgd.step(0.05)
        state = {name: value.clone() for name, value in sgd.state_dict().items()}
    with descending(first, training, state) as sgd:
        for loss in steps:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            sgd.step(0.05)

    for a, b in zip(whole.parameters(), first.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_that_no_loss_reaches_are_left_alone() -> None:
    used, aside = nn.Linear(3, 2), nn.Linear(3, 2)
    before = aside.weight.detach().clone()
    with descending(nn.ModuleList([used, aside]), Training(weight_decay=0.5)) as sgd:
        used(torch.ones(2, 3)).sum().backward()
        sgd.step(0.1)
    assert torch.equal(aside.weight, before)
    assert aside.weight.grad is None


def test_afterwards_every_parameter_has_storage_of_its_own_in_its_memory_format() -> None:
    made = network()
    with descending(made, Training()) as sgd:
        next(losses(made)).backward()  # type: ignore[no-untyped-call]  # torch's own
        sgd.step(0.1)
    for parameter in made.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.itemsize
        assert parameter.grad is None
    convolution = made.get_submodule("block1.layer.0.conv2")
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_loaded_into_the_network_lands_in_the_flat_tensor() -> None:
    layer = nn.Linear(2, 2)
    flat = FlatParameters(list(layer.parameters()))
    layer.load_state_dict({"weight": torch.full((2, 2), 3.0), "bias": torch.full((2,), 3.0)})
    assert flat.values.sum().item() == 18
    layer(torch.ones(1, 2)).sum().backward()
    assert flat.gradients.sum().item() == 6


def test_parameters_of_two_types_are_refused() -> None:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())]
    with pytest.raises(ValueError, match="of one type and device"):
        FlatParameters(parameters)
