"""Calls like one before them: they skip its checks, and where they can the operator, the choice and the plan too.

For a short sequence the host takes longer to launch attention than the GPU takes to compute it. So a call that passed
its checks leaves its way, for those whose tensors differ from its own in nothing but their numbers and their place.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from .kernels import Again
from .ops.attend import again_of, attend_again
from .ops.boundary import differentiates_forward, unobserved
from .patterns.base import Pattern

MOST_KINDS = 256
"""Kinds of calls whose ways are kept; beyond it all are forgotten."""

MOST_ALIKE = 32
"""Ways kept of one kind, whose tensors differ in strides, dtypes or devices; beyond it these are forgotten."""


class Way(NamedTuple):
    """How a call without sinks, dropout, lengths and within ran."""

    guards: TensorGuards
    """Accept tensors of the same class, dtype, device, shape, strides and want of gradients, under the same modes.

    They are asked for each tensor once: of one that is given twice they would accept neither.
    """
    again: Again | None
    """The backend's own way to repeat itself, if it has one."""
    tracked: bool
    """Whether a tensor wants gradients, when they are enabled."""
    settings: tuple[Any, ...]
    """What the operator takes after its tensors."""

    def take(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """The output, and the log-sum-exp: None, or not, where the call that left the way did not ask for it."""
        if self.tracked and torch.is_grad_enabled():
            return attend_again(self.again, q, k, v, *self.settings)
        found = None if self.again is None else self.again(q, k, v)
        return attend_again(None, q, k, v, *self.settings) if found is None else found


_WAYS: dict[Hashable, list[Way]] = {}


def way_of(q: Tensor, k: Tensor, v: Tensor, asked: tuple[Hashable, ...]) -> Way | None:
    """The way that a call like this one has left; the tensors may be anything here.

    `asked` is all that the caller gave but tensors. Where somebody looks at operators, there is none. Transforms and
    tracers show in the dispatch keys, for which guards accept nothing; the others are asked for here.
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.autograd._profiler_enabled()
        or differentiates_forward()
    ):
        return None
    try:
        ways = _WAYS.get(_kind(q, k, v, asked), ())
    except (AttributeError, TypeError, RuntimeError):  # no tensors, or of no one shape: the checks say so
        return None
    tensors = _distinct(q, k, v)
    for way in ways:
        if way.guards.check(*tensors):
            return way
    return None


def leave_way(q: Tensor, k: Tensor, v: Tensor, asked: tuple[Hashable, ...], *settings: Any, lse: bool) -> None:
    """Keeps how a call ran that passed every check; `lse` says whether it wanted the log-sum-exp."""
    if not unobserved((q, k, v)):
        return
    tensors = _distinct(q, k, v)
    # PyTorch's stub leaves the tensors out
    guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)  # type: ignore[call-arg]
    if len(_WAYS) >= MOST_KINDS:
        _WAYS.clear()
    ways = _WAYS.setdefault(_kind(q, k, v, asked), [])
    if len(ways) >= MOST_ALIKE:
        ways.clear()
    tracked = q.requires_grad or k.requires_grad or v.requires_grad
    again = again_of(q, k, v, *settings, lse=lse or tracked)
    ways.append(Way(guards, again, tracked, settings))


def _distinct(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Each tensor once."""
    if q is not k and k is not v and v is not q:
        return q, k, v
    return tuple({id(x): x for x in (q, k, v)}.values())


def _kind(q: Tensor, k: Tensor, v: Tensor, asked: tuple[Hashable, ...]) -> Hashable:
    """Where a way is kept: what tells most calls apart, and which tensors are one.

    Each tensor is asked for its shape: guards end the process on a nested one, which has none and says so here.
    """
    return Pattern.definitions, q.shape, k.shape, v.shape, q is k, k is v, v is q, asked
