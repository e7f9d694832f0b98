"""What every operator does alike where PyTorch ends and kernels begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ..kernels.devices import NO_CHANGE

Result = TypeVar("Result")

LIBRARY = torch.library.Library("gossamer", "FRAGMENT")

MAKES_TABLES = (torch.Tag.cudagraph_unsafe,)
"""A first call makes tables that stay for later ones: `torch.compile` may not count their memory as its own graph's."""


def own_dtypes(device: torch.device) -> AbstractContextManager[object]:
    """No autocast in here: what a kernel computes in float32 stays so."""
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device.type):
        return NO_CHANGE
    return torch.autocast(device.type, enabled=False)


def unobserved(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nobody wants to see the operator, of whose tensors some may be left out: no compiler, tracer, profiler,
    mode or transform, and no tensor that is not plainly the numbers in its memory."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()
    ) and all(x is None or _plain(x) for x in tensors)


def _plain(x: Tensor) -> bool:
    """Whether it holds the numbers in its memory, and is of no subclass, which may want to see the operator."""
    return type(x) in (Tensor, Parameter) and not (x.is_meta or x.is_neg() or x._is_zerotensor())


def differentiates_forward() -> bool:
    """Whether tensors may carry tangents, as under `torch.func.jvp`."""
    return forward_ad._current_level >= 0


def refuse_tangents(operator: str, tensors: Mapping[str, Tensor | None]) -> None:
    """Below autograd they would be lost, and the derivative be zero."""
    for name, x in tensors.items():
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"{name} carries a tangent, and {operator} has no forward-mode derivative; "
                f"use backward, or gossamer.reference"
            )


def below_autograd(function: Callable[..., Result], *inputs: Any) -> Result:
    """What the function gives where autograd records nothing."""
    with torch._C._AutoDispatchBelowAutograd():
        return function(*inputs)
