"""The one boundary to the kernels: `torch.library` operators with shapes, autograd and operation counts.

A pattern crosses it as its text, so that a compiled or exported graph needs no Python object to run again.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .kernels import Backend, Problem, Saved, Softmax, pick
from .patterns.parse import parse
from .plan import Plan, plan, shortened

logger = logging.getLogger(__name__)

torch.library.define(
    "gossamer::attend",
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? seed, str pattern, float scale, float softcap, "
    "float dropout, str? backend) -> (Tensor, Tensor)",
)
torch.library.define(
    "gossamer::attend_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? sinks, "
    "Tensor? seed, str pattern, float scale, float softcap, float dropout, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("gossamer::attend", "default")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, seed: Tensor | None,
    pattern: str, scale: float, softcap: float, dropout: float, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, softcap, dropout, seed)
    made, chosen = _plan_and_backend(q, k, v, sinks, pattern, softmax, backend)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("attend %s runs on %s: %s", tuple(q.shape), chosen.name, shortened(parse(pattern)))
    with torch.autocast(q.device.type, enabled=False):  # the kernel's own float32 stays float32
        return chosen.forward(q, k, v, sinks, made, softmax)


@torch.library.impl("gossamer::attend_backward", "default")
def _attend_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    sinks: Tensor | None, seed: Tensor | None,
    pattern: str, scale: float, softcap: float, dropout: float, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, softcap, dropout, seed)
    made, chosen = _plan_and_backend(q, k, v, sinks, pattern, softmax, backend)
    saved = Saved(q, k, v, out, lse, sinks)
    with torch.autocast(q.device.type, enabled=False):
        dq, dk, dv, dsinks = chosen.backward(saved, grad_out, grad_lse, made, softmax)
    return dq, dk, dv, q.new_empty(0) if dsinks is None else dsinks


def _plan_and_backend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pattern: str, softmax: Softmax, backend: str | None
) -> tuple[Plan, Backend]:
    made = plan(parse(pattern), q.shape[2], k.shape[2], q.shape[1])
    problem = Problem(
        plan=made,
        device=q.device,
        dtype=q.dtype,
        batch=q.shape[0],
        key_heads=k.shape[1],
        width=q.shape[3],
        value_width=v.shape[3],
        softcap=softmax.softcap,
        dropout=softmax.dropout,
        has_sinks=sinks is not None,
    )
    return made, pick(problem, backend)


@torch.library.register_fake("gossamer::attend")
def _attend_shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=lse_dtype)


@torch.library.register_fake("gossamer::attend_backward")
def _attend_backward_shapes(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    out: Tensor, lse: Tensor, sinks: Tensor | None, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dsinks = q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dsinks


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sinks, seed, *ctx.settings = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, sinks, seed)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, sinks, seed = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    dq, dk, dv, dsinks = torch.ops.gossamer.attend_backward(
        grad_out, grad_lse, q, k, v, out, lse, sinks, seed, *ctx.settings
    )
    return dq, dk, dv, None if sinks is None else dsinks, None, *(None for _ in ctx.settings)


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("attend has no gradients of gradients; leave create_graph out, or use gossamer.reference")


torch.library.register_autograd("gossamer::attend", _gradients, setup_context=_save)
torch.library.register_autograd("gossamer::attend_backward", _refuse_second_gradients)


def _pairs(q: torch.Size, k: torch.Size, pattern: str) -> int:
    """Visible pairs of the whole batch."""
    return q[0] * plan(parse(pattern), q[2], k[2], q[1]).pairs


@register_flop_formula(torch.ops.gossamer.attend)
def _attend_operations(q, k, v, sinks, seed, pattern, *_, out_shape=None, **__) -> int:
    return 2 * _pairs(q, k, pattern) * (q[3] + v[3])  # scores, output


@register_flop_formula(torch.ops.gossamer.attend_backward)
def _attend_backward_operations(dout, dlse, q, k, v, out, lse, sinks, seed, pattern, *_, out_shape=None, **__) -> int:
    return 2 * _pairs(q, k, pattern) * (3 * q[3] + 2 * v[3])  # scores again, dq, dk; dv and the probabilities' own
