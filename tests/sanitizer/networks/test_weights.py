import pytest
import torch
from torch import nn

from sanitizer.networks.weights import put_weights
from tests.sanitizer.methods.networks import fresh


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_weights_and_statistics_are_put_in_their_places_and_nothing_is_replaced() -> None:
    network, other = fresh("mnasnet0_5"), fresh("mnasnet0_5")
    with torch.no_grad():
        for value in other.state_dict().values():
            value.add_(1)
    wanted, weight = state_of(other), network.get_parameter("classifier.1.weight")
    put_weights(network, {name: value.double() for name, value in wanted.items()})
    assert network.get_parameter("classifier.1.weight") is weight
    for name, value in network.state_dict().items():
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name])


def test_what_is_not_given_stays() -> None:
    network = fresh()
    before = state_of(network)
    put_weights(network, {"fc.bias": torch.ones(10)})
    after = network.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.bias"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(KeyError, match="elsewhere"):
        put_weights(fresh(), {"elsewhere.bias": torch.ones(10)})
    with pytest.raises(ValueError, match=r"fc.bias of shape \[10\] was expected, got \[1\]"):
        put_weights(fresh(), {"fc.bias": torch.ones(1)})
