"""The operator by which an index learns from attention to all keys, with shapes, autograd and the work it does.

Gradients reach the index alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels.layout import beside, empty_beside
from ..kernels.tiled.warm_up import TILED_WARM_UP
from ..kernels.triton.warm_up import TRITON_WARM_UP
from ..kernels.warm_up import Divergence, Lesson, Road
from .boundary import LIBRARY, own_dtypes

ROADS: tuple[Road, ...] = (TRITON_WARM_UP, TILED_WARM_UP)
"""In the order in which they are tried; the last takes everything."""

_TENSORS = "Tensor q, Tensor k, Tensor lse, Tensor index_q, Tensor index_k, Tensor weights, Tensor? within"
torch.library.define(
    "gossamer::warm_up_divergence", f"({_TENSORS}, float scale, bool relu) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "gossamer::warm_up_divergence_backward",
    f"(Tensor grad, Tensor mass, Tensor index_lse, {_TENSORS}, float scale, bool relu) -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl(LIBRARY, "warm_up_divergence", "CompositeExplicitAutograd")
def _divergence(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    lesson = Lesson(*given)
    with own_dtypes(lesson.q.device):
        return tuple(_road(lesson).forward(lesson))


@torch.library.impl(LIBRARY, "warm_up_divergence_backward", "CompositeExplicitAutograd")
def _divergence_backward(grad: Tensor, mass: Tensor, index_lse: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    lesson = Lesson(*given)
    with own_dtypes(grad.device):
        dq, dk, dweights = _road(lesson).backward(lesson, Divergence(mass, mass, index_lse), grad)
    return beside(dq, lesson.index_q), dk, dweights.contiguous()


def _road(lesson: Lesson) -> Road:
    return next(each for each in ROADS if each.refuses(lesson) is None)


@torch.library.register_fake("gossamer::warm_up_divergence")
def _divergence_shapes(q: Tensor, k: Tensor, lse: Tensor, index_q: Tensor, index_k: Tensor, weights: Tensor, *_: Any):
    rows, mass, index_lse = (weights.new_empty(weights.shape[:2]) for _ in range(3))
    return rows, mass, index_lse


@torch.library.register_fake("gossamer::warm_up_divergence_backward")
def _divergence_backward_shapes(
    grad: Tensor, mass: Tensor, index_lse: Tensor, q: Tensor, k: Tensor, lse: Tensor, index_q: Tensor,
    index_k: Tensor, weights: Tensor, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq = empty_beside(index_q, index_q.shape[-1])
    return dq, index_k.new_empty(index_k.shape), weights.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.relu = inputs
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    given = grad, *ctx.saved_tensors, ctx.scale, ctx.relu
    return None, None, None, *torch.ops.gossamer.warm_up_divergence_backward(*given), None, None, None


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("warm_up_divergence has no gradients of gradients; leave create_graph out")


torch.library.register_autograd("gossamer::warm_up_divergence", _gradients, setup_context=_save)
torch.library.register_autograd("gossamer::warm_up_divergence_backward", _refuse_second_gradients)


@register_flop_formula(torch.ops.gossamer.warm_up_divergence)
def _divergence_operations(q, k, lse, index_q, index_k, *_, out_shape=None, **__) -> int:
    return _most_pairs(q, k) * 2 * (q[1] * q[3] + index_q[1] * index_q[3])  # scores of both


@register_flop_formula(torch.ops.gossamer.warm_up_divergence_backward)
def _divergence_backward_operations(
    grad, mass, index_lse, q, k, lse, index_q, index_k, *_, out_shape=None, **__
) -> int:
    return _most_pairs(q, k) * 2 * (q[1] * q[3] + 3 * index_q[1] * index_q[3])  # these again, and two gradients


def _most_pairs(q: torch.Size, k: torch.Size) -> int:
    return q[0] * q[2] * k[2]
