"""Operations that can be derived twice, in place of torch's own that cannot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def _hardsigmoid(values: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001  # as torch's
    """The second derivative of torch's is not implemented. MobileNetV3 has it."""
    return functional.relu6(values + 3) / 6


def _normalize(
    values: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """The second derivative of torch's is not a number where all values are 0.

    As they are in Swin v2, in the padding of a window.
    """
    if p != 2.0 or out is not None:
        return functional.normalize(values, p, dim, eps, out)
    squares = values.square().sum(dim=dim, keepdim=True)
    return values * squares.clamp(min=eps**2).rsqrt()


_REPLACED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.hardsigmoid: _hardsigmoid,
    functional.normalize: _normalize,
}


class _Replacing(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Lets what is computed in the block be derived twice, by any network of the catalog."""
    # torch's other kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), _Replacing():
        yield
