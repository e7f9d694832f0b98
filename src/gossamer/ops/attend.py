"""The one boundary to the kernels: `torch.library` operators with shapes, autograd and operation counts.

A pattern crosses it as its text, so that a compiled or exported graph needs no Python object to run again.
Whatever runs here runs before each kernel, so all that can be remembered from call to call is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels import Again, Repeating, Saved, Softmax
from ..kernels.layout import beside, empty_beside
from ..patterns.parse import parse
from ..plan import plan
from .boundary import (
    LIBRARY,
    MAKES_TABLES,
    Result,
    below_autograd,
    differentiates_forward,
    own_dtypes,
    refuse_tangents,
    unobserved,
)
from .choice import Call, choice

torch.library.define(
    "gossamer::attend",
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? seed, Tensor? lengths, Tensor? within, "
    "str pattern, float scale, float softcap, float dropout, str? backend) -> (Tensor, Tensor)",
    tags=MAKES_TABLES,
)
torch.library.define(
    "gossamer::attend_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? sinks, "
    "Tensor? seed, Tensor? lengths, Tensor? within, str pattern, float scale, float softcap, float dropout, "
    "str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=MAKES_TABLES,
)


@torch.library.impl(LIBRARY, "attend", "CompositeExplicitAutograd")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, seed: Tensor | None, lengths: Tensor | None,
    within: Tensor | None, pattern: str, scale: float, softcap: float, dropout: float, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, softcap, dropout, seed, lengths, _dense(within))
    made, chosen = choice(Call.of(q, k, v, sinks, pattern, softmax), backend)
    with own_dtypes(q.device):
        out, lse = chosen.forward(q, k, v, _dense(sinks), made, softmax)
    return beside(out, q), lse


@torch.library.impl(LIBRARY, "attend_backward", "CompositeExplicitAutograd")
def _attend_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    sinks: Tensor | None, seed: Tensor | None, lengths: Tensor | None, within: Tensor | None,
    pattern: str, scale: float, softcap: float, dropout: float, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, softcap, dropout, seed, lengths, _dense(within))
    call = Call.of(q, k, v, sinks, pattern, softmax)
    made, chosen = choice(call._replace(backward=True), backend)
    saved = Saved(q, k, v, out, lse, _dense(sinks))
    if grad_lse is not None:  # a query that sees nothing has no log-sum-exp to change, whatever comes back to it
        grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0.0)
    with own_dtypes(q.device):
        dq, dk, dv, dsinks = chosen.backward(saved, grad_out, grad_lse, made, softmax)
    return beside(dq, q), beside(dk, k), beside(dv, v), q.new_empty(0) if dsinks is None else dsinks


def _dense(x: Tensor | None) -> Tensor | None:
    """One number after the other, as kernels read them."""
    return None if x is None else x.contiguous()


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
    if not unobserved(inputs[:7]):
        return torch.ops.gossamer.attend.default(*inputs)
    return _directly(_attend, *inputs)


def attend_backward_eagerly(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the backward operator gives, without the operator where nobody could tell."""
    if torch.is_grad_enabled() or not unobserved(inputs[:11]):
        return torch.ops.gossamer.attend_backward.default(*inputs)
    return below_autograd(_attend_backward, *inputs)


def attend_again(again: Again | None, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor | None]:
    """The same for these alone, which nobody observes, by the way that the backend has left for such ones, if any."""
    function = _attend if again is None else partial(_attend_by, again)
    return _directly(function, q, k, v, None, None, None, None, *settings)


def _attend_by(again: Again, *inputs: Any) -> tuple[Tensor, Tensor | None]:
    found = again(*inputs[:3])
    return _attend(*inputs) if found is None else found


def _directly(function: Callable[..., Result], *inputs: Any) -> Result:
    """What the forward operator, or a function like it, gives below autograd, with gradients where they are wanted."""
    if differentiates_forward():
        q, k, v, sinks = inputs[:4]
        refuse_tangents("attend", {"q": q, "k": k, "v": v, "sinks": sinks})
    if _wants_gradients(inputs):
        return _Attend.apply(function, *inputs)
    return below_autograd(function, *inputs)


def again_of(q: Tensor, k: Tensor, v: Tensor, *settings: Any, lse: bool) -> Again | None:
    """How the backend of a plain call that was made repeats itself, if it can."""
    pattern, scale, softcap, dropout, backend = settings
    softmax = Softmax(scale, softcap, dropout)
    made, chosen = choice(Call.of(q, k, v, None, pattern, softmax), backend)
    return chosen.again(q, k, v, made, softmax, lse=lse) if isinstance(chosen, Repeating) else None


class _Attend(torch.autograd.Function):
    """The forward operator below autograd, or a function like it, with the backward operator as its gradient."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, Tensor]], *inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = below_autograd(function, *inputs)
        q, k, v, sinks, seed, lengths, within, *ctx.settings = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, sinks, seed, lengths, within)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = gradients
        if differentiates_forward():
            refuse_tangents("attend", {"grad_out": grad_out, "grad_lse": grad_lse})
        q, k, v, out, lse, sinks, seed, lengths, within = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        given = grad_out, grad_lse, q, k, v, out, lse, sinks, seed, lengths, within
        dq, dk, dv, dsinks = attend_backward_eagerly(*given, *ctx.settings)
        return None, dq, dk, dv, None if sinks is None else dsinks, None, None, None, *(None for _ in ctx.settings)


# `torch.library.register_autograd` does the same, but reads the schema again at every call: 30 microseconds.
@torch.library.impl(LIBRARY, "attend", "Autograd")
def _attend_above_autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _directly(torch.ops.gossamer.attend.default, *inputs)


def _wants_gradients(inputs: Sequence[Any]) -> bool:
    q, k, v, sinks = inputs[:4]
    wanted = q.requires_grad or k.requires_grad or v.requires_grad or (sinks is not None and sinks.requires_grad)
    return wanted and torch.is_grad_enabled()


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("attend has no gradients of gradients; leave create_graph out, or use gossamer.reference")


torch.library.register_autograd("gossamer::attend_backward", _refuse_second_gradients)


def _pairs(q: torch.Size, k: torch.Size, pattern: str) -> int:
    """Visible pairs of the whole batch, at full lengths: `lengths` and `within` are known to the device alone."""
    return q[0] * plan(parse(pattern), q[2], k[2], q[1]).pairs


@register_flop_formula(torch.ops.gossamer.attend)
def _attend_operations(q, k, v, sinks, seed, lengths, within, pattern, *_, out_shape=None, **__) -> int:
    return 2 * _pairs(q, k, pattern) * (q[3] + v[3])  # scores, output


@register_flop_formula(torch.ops.gossamer.attend_backward)
def _attend_backward_operations(
    grad_out, grad_lse, q, k, v, out, lse, sinks, seed, lengths, within, pattern, *_, out_shape=None, **__
) -> int:
    return 2 * _pairs(q, k, pattern) * (3 * q[3] + 2 * v[3])  # scores again, dq, dk; dv and the probabilities' own
