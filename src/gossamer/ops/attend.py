"""The one boundary to the kernels: `torch.library` operators with shapes, autograd and operation counts.

A pattern crosses it as its text, so that a compiled or exported graph needs no Python object to run again.
Whatever runs here runs before each kernel, so all that can be remembered from call to call is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils.flop_counter import register_flop_formula

from ..kernels import Again, Backend, Problem, Repeating, Saved, Softmax, choose
from ..kernels.devices import NO_CHANGE
from ..kernels.layout import beside, empty_beside
from ..patterns.base import Pattern
from ..patterns.parse import parse
from ..plan import Plan, plan, shortened

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LIBRARY = torch.library.Library("gossamer", "FRAGMENT")

MAKES_TABLES = (torch.Tag.cudagraph_unsafe,)
"""A first call makes tables that stay for later ones: `torch.compile` may not count their memory as its own graph's."""

torch.library.define(
    "gossamer::attend",
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? seed, Tensor? lengths, str pattern, float scale, "
    "float softcap, float dropout, str? backend) -> (Tensor, Tensor)",
    tags=MAKES_TABLES,
)
torch.library.define(
    "gossamer::attend_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? sinks, "
    "Tensor? seed, Tensor? lengths, str pattern, float scale, float softcap, float dropout, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=MAKES_TABLES,
)


@torch.library.impl(LIBRARY, "attend", "CompositeExplicitAutograd")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, seed: Tensor | None, lengths: Tensor | None,
    pattern: str, scale: float, softcap: float, dropout: float, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, softcap, dropout, seed, lengths)
    made, chosen = _choice(_Call.of(q, k, v, sinks, pattern, softmax), backend)
    with _own_dtypes(q.device):
        out, lse = chosen.forward(q, k, v, _dense(sinks), made, softmax)
    return beside(out, q), lse


@torch.library.impl(LIBRARY, "attend_backward", "CompositeExplicitAutograd")
def _attend_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    sinks: Tensor | None, seed: Tensor | None, lengths: Tensor | None,
    pattern: str, scale: float, softcap: float, dropout: float, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, softcap, dropout, seed, lengths)
    call = _Call.of(q, k, v, sinks, pattern, softmax)
    made, chosen = _choice(call._replace(backward=True), backend)
    saved = Saved(q, k, v, out, lse, _dense(sinks))
    if grad_lse is not None:  # a query that sees nothing has no log-sum-exp to change, whatever comes back to it
        grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0.0)
    with _own_dtypes(q.device):
        dq, dk, dv, dsinks = chosen.backward(saved, grad_out, grad_lse, made, softmax)
    return beside(dq, q), beside(dk, k), beside(dv, v), q.new_empty(0) if dsinks is None else dsinks


def _dense(sinks: Tensor | None) -> Tensor | None:
    """One logit after the other, as kernels read them."""
    return None if sinks is None else sinks.contiguous()


def _own_dtypes(device: torch.device) -> AbstractContextManager[object]:
    """No autocast in here: what a kernel computes in float32 stays so."""
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device.type):
        return NO_CHANGE
    return torch.autocast(device.type, enabled=False)


class _Call(NamedTuple):
    """What of a call decides how it runs; a tuple, because one is made and hashed at every call."""

    pattern: str
    definitions: int
    q: torch.Size
    k: torch.Size
    v: torch.Size
    device: torch.device
    dtype: torch.dtype
    scale: float
    softcap: float
    dropout: float
    has_sinks: bool
    lengths: bool
    backward: bool = False

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pattern: str, softmax: Softmax) -> _Call:
        return cls(
            pattern, Pattern.definitions, q.shape, k.shape, v.shape, q.device, q.dtype,
            softmax.scale, softmax.softcap, softmax.dropout, sinks is not None, softmax.lengths is not None,
        )  # fmt: skip

    @property
    def problem(self) -> Problem:
        """The same for a backend to judge."""
        _, heads, queries, width = self.q
        return Problem(
            plan=plan(parse(self.pattern), queries, self.k[2], heads),
            device=self.device,
            dtype=self.dtype,
            batch=self.q[0],
            key_heads=self.k[1],
            width=width,
            value_width=self.v[3],
            scale=self.scale,
            softcap=self.softcap,
            dropout=self.dropout,
            has_sinks=self.has_sinks,
            lengths=self.lengths,
            backward=self.backward,
        )


def problem_of(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pattern: str, softmax: Softmax) -> Problem:
    """What a call of `attend` asks of a backend, forward."""
    return _Call.of(q, k, v, sinks, pattern, softmax).problem


@lru_cache(maxsize=256)
def _choice(call: _Call, name: str | None) -> tuple[Plan, Backend]:
    """The plan of a call and the backend that runs it, kept for the last 256 kinds of call."""
    problem = call.problem
    choice = choose(problem, name)
    if logger.isEnabledFor(logging.DEBUG):
        what = "attend_backward" if call.backward else "attend"
        logger.debug("%s %s: %s\nruns on %s", what, tuple(call.q), shortened(parse(call.pattern)), choice)
    return problem.plan, choice.taken()


@torch.library.register_fake("gossamer::attend")
def _attend_shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return empty_beside(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=lse_dtype)


@torch.library.register_fake("gossamer::attend_backward")
def _attend_backward_shapes(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    out: Tensor, lse: Tensor, sinks: Tensor | None, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dsinks = q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)
    dq, dk, dv = (empty_beside(x, x.shape[-1]) for x in (q, k, v))
    return dq, dk, dv, dsinks


def attend_eagerly(*inputs: Any) -> tuple[Tensor, Tensor]:
    """What the operator gives inputs that were checked, without the operator where nobody could tell."""
    if not unobserved(inputs[:6]):
        return torch.ops.gossamer.attend.default(*inputs)
    return _directly(_attend, *inputs)


def attend_again(again: Again | None, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor | None]:
    """The same for these alone, which nobody observes, by the way that the backend has left for such ones, if any."""
    function = _attend if again is None else partial(_attend_by, again)
    return _directly(function, q, k, v, None, None, None, *settings)


def _attend_by(again: Again, *inputs: Any) -> tuple[Tensor, Tensor | None]:
    found = again(*inputs[:3])
    return _attend(*inputs) if found is None else found


def _directly(function: Callable[..., Result], *inputs: Any) -> Result:
    """What the forward operator, or a function like it, gives below autograd, with gradients where they are wanted."""
    if differentiates_forward():
        q, k, v, sinks = inputs[:4]
        _refuse_tangents(q=q, k=k, v=v, sinks=sinks)
    if _wants_gradients(inputs):
        return _Attend.apply(function, *inputs)
    return _below_autograd(function, *inputs)


def again_of(q: Tensor, k: Tensor, v: Tensor, *settings: Any, lse: bool) -> Again | None:
    """How the backend of a plain call that was made repeats itself, if it can."""
    pattern, scale, softcap, dropout, backend = settings
    softmax = Softmax(scale, softcap, dropout)
    made, chosen = _choice(_Call.of(q, k, v, None, pattern, softmax), backend)
    return chosen.again(q, k, v, made, softmax, lse=lse) if isinstance(chosen, Repeating) else None


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


class _Attend(torch.autograd.Function):
    """The forward operator below autograd, or a function like it, with the backward operator as its gradient."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, Tensor]], *inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = _below_autograd(function, *inputs)
        q, k, v, sinks, seed, lengths, *ctx.settings = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, sinks, seed, lengths)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = gradients
        if differentiates_forward():
            _refuse_tangents(grad_out=grad_out, grad_lse=grad_lse)
        q, k, v, out, lse, sinks, seed, lengths = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        given = grad_out, grad_lse, q, k, v, out, lse, sinks, seed, lengths
        if torch.is_grad_enabled() or not unobserved(given):
            gradients = torch.ops.gossamer.attend_backward.default(*given, *ctx.settings)
        else:
            gradients = _below_autograd(_attend_backward, *given, *ctx.settings)
        dq, dk, dv, dsinks = gradients
        return None, dq, dk, dv, None if sinks is None else dsinks, None, None, *(None for _ in ctx.settings)


# `torch.library.register_autograd` does the same, but reads the schema again at every call: 30 microseconds.
@torch.library.impl(LIBRARY, "attend", "Autograd")
def _attend_above_autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _directly(torch.ops.gossamer.attend.default, *inputs)


def _wants_gradients(inputs: Sequence[Any]) -> bool:
    q, k, v, sinks = inputs[:4]
    wanted = q.requires_grad or k.requires_grad or v.requires_grad or (sinks is not None and sinks.requires_grad)
    return wanted and torch.is_grad_enabled()


def differentiates_forward() -> bool:
    """Whether tensors may carry tangents, as under `torch.func.jvp`."""
    return forward_ad._current_level >= 0


def _refuse_tangents(**tensors: Tensor | None) -> None:
    """Below autograd they would be lost, and the derivative be zero."""
    for name, x in tensors.items():
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"{name} carries a tangent, and attend has no forward-mode derivative; "
                f"use backward, or gossamer.reference"
            )


def _below_autograd(function: Callable[..., Result], *inputs: Any) -> Result:
    with torch._C._AutoDispatchBelowAutograd():
        return function(*inputs)


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("attend has no gradients of gradients; leave create_graph out, or use gossamer.reference")


torch.library.register_autograd("gossamer::attend_backward", _refuse_second_gradients)


def _pairs(q: torch.Size, k: torch.Size, pattern: str) -> int:
    """Visible pairs of the whole batch, at full lengths: those of `lengths` are known to the device alone."""
    return q[0] * plan(parse(pattern), q[2], k[2], q[1]).pairs


@register_flop_formula(torch.ops.gossamer.attend)
def _attend_operations(q, k, v, sinks, seed, lengths, pattern, *_, out_shape=None, **__) -> int:
    return 2 * _pairs(q, k, pattern) * (q[3] + v[3])  # scores, output


@register_flop_formula(torch.ops.gossamer.attend_backward)
def _attend_backward_operations(
    grad_out, grad_lse, q, k, v, out, lse, sinks, seed, lengths, pattern, *_, out_shape=None, **__
) -> int:
    return 2 * _pairs(q, k, pattern) * (3 * q[3] + 2 * v[3])  # scores again, dq, dk; dv and the probabilities' own
