"""All parameters that are trained as one tensor, all of their gradients as another.

An update, a norm or a sum over processes is then one operation, however many layers there are.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

ALIGNMENT_BYTES = 64
"""What torch's allocator gives every tensor. Kernels sum in another order where a tensor begins
elsewhere, so that a run taken up again would differ in the last bit from one that was not."""


class FlatParameters:
    """Lays parameters and their gradients into one tensor each, until `release`.

    A parameter and its gradient become views: what `backward` adds and what is loaded into the
    network lands in the flat tensors. Replacing a parameter or its gradient is not for that time.

    Args:
        parameters: Of one type, on one device. Gradients that they have are kept.

    Raises:
        ValueError: There are none, or they differ in type or device.

    Attributes:
        values: [P], where P is the number of all elements, and of gaps, which stay 0.
        gradients: [P].
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise ValueError(
                f"parameters of one type and device were expected, these are of {kinds or 'none'}"
            )
        dtype, device = kinds.pop()
        self._parameters = tuple(parameters)
        self._step = ALIGNMENT_BYTES // dtype.itemsize
        total = sum(self._room(parameter) for parameter in parameters)
        self.values = torch.zeros(total, dtype=dtype, device=device)
        self.gradients = torch.zeros_like(self.values)
        for parameter, value, gradient in zip(
            parameters, self._views(self.values), self._views(self.gradients), strict=True
        ):
            value.copy_(parameter.detach())
            parameter.data = value
            if parameter.grad is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient

    def release(self) -> None:
        """Gives each parameter a tensor of its own again, and no gradient."""
        for parameter in self._parameters:
            # Saving a view would write the tensor of all of them; `clone` keeps the memory format.
            parameter.data = parameter.data.clone()
            parameter.grad = None

    def _room(self, parameter: nn.Parameter) -> int:
        return -(-parameter.numel() // self._step) * self._step

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        """One view a parameter, with the parameter's own strides.

        Where a memory format is ambiguous, as with one channel, the strides decide which kernel
        computes, and so the last bit.
        """
        start = 0
        for parameter in self._parameters:
            yield flat.as_strided(parameter.shape, _dense_strides(parameter), start)
            start += self._room(parameter)


def _dense_strides(parameter: nn.Parameter) -> tuple[int, ...]:
    extent = 1 + sum(
        (n - 1) * by for n, by in zip(parameter.shape, parameter.stride(), strict=True)
    )
    if extent == parameter.numel():
        return parameter.stride()
    return torch.empty(parameter.shape, device="meta").stride()
