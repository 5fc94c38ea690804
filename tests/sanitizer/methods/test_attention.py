import pytest
import torch

from sanitizer.methods.attention import attention_map
from sanitizer.randomness import make_generator


def plain(features: torch.Tensor) -> torch.Tensor:
    energy = features.square().sum(dim=1, keepdim=True)
    norm: torch.Tensor = torch.linalg.vector_norm(energy, dim=(2, 3), keepdim=True)
    return energy / (norm + 1e-6)


def test_the_gradient_is_that_of_the_plain_formula() -> None:
    generator = make_generator(0)
    features = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    towards = torch.randn(3, 1, 5, 6, generator=generator, dtype=torch.float64)
    mine, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()

    (attention_map(mine) * towards).sum().backward()  # type: ignore[no-untyped-call]  # torch's
    (plain(theirs) * towards).sum().backward()  # type: ignore[no-untyped-call]  # torch's

    assert mine.grad is not None
    torch.testing.assert_close(attention_map(features), plain(features), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-13)


def test_the_gradient_is_that_of_finite_differences() -> None:
    features = torch.randn(2, 3, 4, 4, generator=make_generator(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(attention_map, features.requires_grad_())


def test_a_map_of_zeros_stays_zero_and_gets_no_gradient() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    maps = attention_map(features)
    maps.sum().backward()  # type: ignore[no-untyped-call]  # torch's
    assert maps.eq(0).all()
    assert features.grad is not None
    assert features.grad.eq(0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_in_half_the_bits_are_added_up_in_float32(layout: torch.memory_format) -> None:
    features = torch.randn(2, 64, 8, 8, generator=make_generator(2)).bfloat16()
    maps = attention_map(features.to(memory_format=layout))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, plain(features.float()), rtol=1e-5, atol=1e-7)
