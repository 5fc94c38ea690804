"""Networks without weights: built in no time and no memory, to compare shapes or to be filled."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ALLOCATING = frozenset({torch.empty, torch.zeros, torch.ones, torch.full})
_INITIALISING = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.fill_,
        Tensor.zero_,
        # What nn.init.trunc_normal_ does to uniform numbers.
        Tensor.erfinv_,
        Tensor.mul_,
        Tensor.add_,
        Tensor.clamp_,
    }
)


class SkeletonMode(TorchFunctionMode):
    """Puts what weights are allocated with on the meta device, and leaves all else alone.

    `torch.device("meta")` would also move the small calculations that some constructors make with
    tensors (RegNet's widths, Swin's position indices) and break them.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],  # the signature is torch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _INITIALISING or getattr(func, "__module__", None) == nn.init.__name__:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                # There is nothing to fill. Finding that out takes torch half of the time, and the
                # import of its compiler, a second.
                return tensor
        if func in _ALLOCATING:
            # An explicit None, as nn.Module passes it on, means "unsaid" too.
            given["device"] = given.get("device") or "meta"
        return func(*args, **given)


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts weights in the places of a skeleton; what `state` lacks is left as it is.

    Unlike `load_state_dict` no hook of the network's runs: some torchvision networks rebuild
    themselves by the version that a file claims.
    """
    for path, module in network.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, old in list(module.named_parameters(recurse=False)):
            if (new := state.get(prefix + name)) is not None:
                setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for name, _ in list(module.named_buffers(recurse=False)):
            if (new := state.get(prefix + name)) is not None:
                setattr(module, name, new)
