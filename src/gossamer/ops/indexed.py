"""The operators of indexed attention: each query over the keys that were chosen for it, with shapes and autograd.

The choice crosses as a tensor of numbers, through which no gradient passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels.block_choices.road import Blocks
from ..kernels.choice import first_of
from ..kernels.hopper.chosen_blocks import HOPPER_BLOCKS
from ..kernels.hopper.indexed import HOPPER_INDEXED
from ..kernels.indexed import Inputs, Returning, Road
from ..kernels.layout import beside, empty_beside, empty_by_token
from ..kernels.problem import Saved, Softmax
from ..kernels.sinks import sink_gradient
from ..kernels.tiled.indexed import TILED_INDEXED
from ..kernels.triton.chosen_blocks import TRITON_BLOCKS
from ..kernels.triton.indexed import TRITON_INDEXED
from ..selectors.selection import Selection
from .boundary import LIBRARY, own_dtypes

ROADS: tuple[Road, ...] = (HOPPER_INDEXED, Blocks(HOPPER_BLOCKS, TRITON_BLOCKS), TRITON_INDEXED, TILED_INDEXED)
"""In the order in which they are tried."""

_INPUTS = "Tensor q, Tensor k, Tensor? v, Tensor? sinks, Tensor? seed, Tensor indices, Tensor? mask"
_SETTINGS = "int block_size, bool causal, int value_width, float scale, float softcap, float dropout, str? backend"
torch.library.define("gossamer::attend_indexed", f"({_INPUTS}, {_SETTINGS}) -> (Tensor, Tensor)")
torch.library.define(
    "gossamer::attend_indexed_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_INPUTS}, {_SETTINGS}) "
    f"-> (Tensor, Tensor, Tensor, Tensor)",
)


def road(given: Inputs, name: str | None = None, *, backward: bool = False) -> Road:
    """The first road that takes such inputs, or the one called `name`.

    Raises:
        ValueError: There is no road called `name`.
        Unsupported: The named road, or every one, refuses; the message gives the reasons.
    """
    return first_of(ROADS, lambda each: each.refuses(given, backward=backward), name).taken()


@torch.library.impl(LIBRARY, "attend_indexed", "CompositeExplicitAutograd")
def _attend(*inputs: Any) -> tuple[Tensor, Tensor]:
    given, backend = read(*inputs)
    with own_dtypes(given.q.device):
        out, lse = road(given, backend).forward(given)
    return _by_token(out), lse.contiguous()


@torch.library.impl(LIBRARY, "attend_indexed_backward", "CompositeExplicitAutograd")
def _attend_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given, backend = read(*inputs)
    q, k, v, sinks = given.q, given.k, given.v, given.sinks
    if grad_lse is not None:  # a query that sees nothing has no log-sum-exp to change, whatever comes back to it
        grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0.0)
    with own_dtypes(q.device):
        chosen = road(given, backend, backward=True)
        dq, dk, dv = chosen.backward(given, Returning(out, lse, grad_out, grad_lse))
        dsinks = sink_gradient(Saved(q, k, given.values, out, lse, sinks), grad_out, grad_lse)
    dv = q.new_empty(0) if v is None or dv is None else beside(dv, v)
    return beside(dq, q), beside(dk, k), dv, q.new_empty(0) if dsinks is None else dsinks


def read(
    q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor | None, seed: Tensor | None, *others: Any
) -> tuple[Inputs, str | None]:
    """The flat arguments of the operators, by name, and the backend's."""
    indices, mask, block_size, causal, value_width, scale, softcap, dropout, backend = others
    selection, softmax = Selection(indices, block_size, causal, mask), Softmax(scale, softcap, dropout, seed)
    return Inputs(q, k, v, value_width, sinks, selection, softmax), backend


def _by_token(out: Tensor) -> Tensor:
    """[B, H, Q, Dv] whose heads lie inside its queries, as they pass into the next projection."""
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@torch.library.register_fake("gossamer::attend_indexed")
def _shapes(q: Tensor, k: Tensor, v: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    lse = q.new_empty(batch, heads, queries, dtype=torch.promote_types(q.dtype, torch.float32))
    return empty_by_token(q, others[6]), lse


@torch.library.register_fake("gossamer::attend_indexed_backward")
def _backward_shapes(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor,
    q: Tensor, k: Tensor, v: Tensor | None, sinks: Tensor | None, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk = (empty_beside(x, x.shape[-1]) for x in (q, k))
    dv = q.new_empty(0) if v is None else empty_beside(v, v.shape[-1])
    return dq, dk, dv, q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.settings = inputs[:7], inputs[7:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * (len(tensors) + len(ctx.settings))
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    given = grad_out, grad_lse, out, lse, *tensors, *ctx.settings
    dq, dk, dv, dsinks = torch.ops.gossamer.attend_indexed_backward(*given)
    of_values, of_sinks = (None if x is None else d for x, d in zip(tensors[2:4], (dv, dsinks), strict=True))
    return dq, dk, of_values, of_sinks, *(None for _ in (*tensors[4:], *ctx.settings))


torch.library.register_autograd("gossamer::attend_indexed", _gradients, setup_context=_set_up)


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("attend_indexed has no gradients of gradients; leave create_graph out")


torch.library.register_autograd("gossamer::attend_indexed_backward", _refuse_second_gradients)


def _pairs(q: tuple[int, ...], k: tuple[int, ...], indices: tuple[int, ...], block_size: int) -> int:
    """Pairs that meet, as if every number chose a key of its own."""
    return q[0] * q[1] * q[2] * min(indices[-1] * block_size, k[2])


@register_flop_formula(torch.ops.gossamer.attend_indexed)
def _operations(q, k, v, sinks, seed, indices, mask, block_size, causal, width, *_, out_shape=None, **__) -> int:
    return 2 * _pairs(q, k, indices, block_size) * (q[3] + width)  # scores, output


@register_flop_formula(torch.ops.gossamer.attend_indexed_backward)
def _backward_operations(
    grad_out, grad_lse, out, lse, q, k, v, sinks, seed, indices, mask, block_size, causal, width, *_,
    out_shape=None, **__,
) -> int:  # fmt: skip
    return 2 * _pairs(q, k, indices, block_size) * (3 * q[3] + 2 * width)
