"""Normalisation as a part of the network."""

import pytest
import torch
from torch import nn

from sanitizer.networks.normalized import NormalizedNetwork


def test_images_are_normalised_per_channel() -> None:
    network = NormalizedNetwork(nn.Identity(), (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    out = network(images)

    expected = torch.stack(
        [(images[:, 0] - 0.5) / 0.5, images[:, 1] - 0.25, images[:, 2] / 2], dim=1
    )
    torch.testing.assert_close(out, expected)


def test_nothing_is_computed_where_mean_and_std_say_nothing() -> None:
    images = torch.rand(2, 1, 4, 4)

    assert NormalizedNetwork(nn.Identity(), (0.0,), (1.0,))(images) is images


def test_mean_and_std_are_no_weights() -> None:
    network = NormalizedNetwork(nn.Linear(2, 2), (0.5,), (0.5,))

    assert list(network.state_dict()) == ["network.weight", "network.bias"]
    assert [name for name, _ in network.named_buffers()] == ["mean", "std"]


def test_different_numbers_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="2 means and 1"):
        NormalizedNetwork(nn.Identity(), (0.5, 0.5), (0.5,))
