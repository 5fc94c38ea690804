import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.methods.twice import twice_differentiable
from sanitizer.randomness import make_generator


def values() -> Tensor:
    return 3 * torch.randn(6, 5, generator=make_generator(0), dtype=torch.float64)


def test_what_is_replaced_computes_the_same() -> None:
    with twice_differentiable():
        hard, unit = nn.Hardsigmoid()(values()), functional.normalize(values(), dim=-1)
    torch.testing.assert_close(hard, functional.hardsigmoid(values()), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(unit, functional.normalize(values(), dim=-1), rtol=1e-12, atol=0)


def test_other_norms_are_left_to_torch() -> None:
    with twice_differentiable():
        found = functional.normalize(values(), p=1.0, dim=0)
    assert torch.equal(found, functional.normalize(values(), p=1.0, dim=0))


def test_second_derivatives_are_those_of_finite_differences() -> None:
    def of(x: Tensor) -> Tensor:
        with twice_differentiable():
            return functional.hardsigmoid(x) * functional.normalize(x, dim=-1)

    assert torch.autograd.gradgradcheck(of, values().requires_grad_())


def test_second_derivative_at_zero_is_a_number() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    with twice_differentiable():
        unit = functional.normalize(x, dim=-1)
    (slope,) = torch.autograd.grad(unit.sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
    assert curved.isfinite().all()


def test_attention_can_be_derived_twice() -> None:
    x = torch.randn(2, 3, 4, 8, generator=make_generator(1), requires_grad=True)
    with twice_differentiable():
        out = functional.scaled_dot_product_attention(x, x, x)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (curved,) = torch.autograd.grad(slope.square().sum(), x)
    assert curved.abs().sum() > 0
