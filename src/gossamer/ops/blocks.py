"""The operators of `attend_blocks`: softmax attention over blocks that a layout on the device chooses at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels import Layout, Saved, Softmax
from ..kernels.layout import beside, empty_beside
from ..patterns.causal import Causal
from .boundary import LIBRARY, MAKES_TABLES, own_dtypes
from .choice import Call, choice

EVERYTHING = (Causal() | ~Causal()).spec
"""What the plan shows: the layout says what of it is visible."""

torch.library.define(
    "gossamer::attend_blocks",
    "(Tensor q, Tensor k, Tensor v, Tensor layout, Tensor? within, int block, float scale, str? backend) "
    "-> (Tensor, Tensor)",
    tags=MAKES_TABLES,
)
torch.library.define(
    "gossamer::attend_blocks_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor layout, "
    "Tensor? within, int block, float scale, str? backend) -> (Tensor, Tensor, Tensor)",
    tags=MAKES_TABLES,
)


@torch.library.impl(LIBRARY, "attend_blocks", "CompositeExplicitAutograd")
def _attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, layout: Tensor, within: Tensor | None,
    block: int, scale: float, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, within=None if within is None else within.contiguous(), blocks=Layout(layout, block))
    made, chosen = choice(Call.of(q, k, v, None, EVERYTHING, softmax), backend)
    with own_dtypes(q.device):
        out, lse = chosen.forward(q, k, v, None, made, softmax)
    return beside(out, q), lse


@torch.library.impl(LIBRARY, "attend_blocks_backward", "CompositeExplicitAutograd")
def _attend_blocks_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: Tensor, within: Tensor | None, block: int, scale: float, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    softmax = Softmax(scale, within=None if within is None else within.contiguous(), blocks=Layout(layout, block))
    call = Call.of(q, k, v, None, EVERYTHING, softmax)
    made, chosen = choice(call._replace(backward=True), backend)
    if grad_lse is not None:  # a query that sees nothing has no log-sum-exp to change, whatever comes back to it
        grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0.0)
    with own_dtypes(q.device):
        dq, dk, dv, _ = chosen.backward(Saved(q, k, v, out, lse, None), grad_out, grad_lse, made, softmax)
    return beside(dq, q), beside(dk, k), beside(dv, v)


@torch.library.register_fake("gossamer::attend_blocks")
def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(q.dtype, torch.float32)
    return empty_beside(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=lse_dtype)


@torch.library.register_fake("gossamer::attend_blocks_backward")
def _backward_shapes(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (empty_beside(x, x.shape[-1]) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, layout, within, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, layout, within)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, *rest = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    given = grad_out, grad_lse, q, k, v, out, *rest, *ctx.settings
    return *torch.ops.gossamer.attend_blocks_backward(*given), None, None, None, None, None


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("attend_blocks has no gradients of gradients; leave create_graph out")


torch.library.register_autograd("gossamer::attend_blocks", _gradients, setup_context=_save)
torch.library.register_autograd("gossamer::attend_blocks_backward", _refuse_second_gradients)


@register_flop_formula(torch.ops.gossamer.attend_blocks)
def _operations(q, k, v, *_, out_shape=None, **__) -> int:
    return 2 * _most_pairs(q, k) * (q[3] + v[3])  # scores, output


@register_flop_formula(torch.ops.gossamer.attend_blocks_backward)
def _backward_operations(grad_out, grad_lse, q, k, v, *_, out_shape=None, **__) -> int:
    return 2 * _most_pairs(q, k) * (3 * q[3] + 2 * v[3])  # scores again, dq, dk; dv and the probabilities' own


def _most_pairs(q: torch.Size, k: torch.Size) -> int:
    """Every pair of the batch: how many the blocks hold is known to the device alone."""
    return q[0] * q[1] * q[2] * k[2]
