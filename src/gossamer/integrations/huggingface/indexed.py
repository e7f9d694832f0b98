"""`indexed_attention`: softmax attention of each query over the keys that a model chose for it, and over no others."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...kernels import Softmax
from .gathering import Inputs, backward, forward
from .selection import Selection

torch.library.define(
    "gossamer::attend_selected",
    "(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? seed, Tensor indices, Tensor? mask, int block_size, "
    "float scale, float softcap, float dropout) -> (Tensor, Tensor)",
)
torch.library.define(
    "gossamer::attend_selected_backward",
    "(Tensor grad_out, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? seed, "
    "Tensor indices, Tensor? mask, int block_size, float scale, float softcap, float dropout) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


def indexed_attention(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K Dv"],
    selection: Selection,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B Q H Dv"]:
    """Softmax attention of each query over the keys of `selection`, and over no others; gradients reach all inputs.

    A query that may see nothing gets zeros. Memory is that of a block of queries, never of all pairs, and time follows
    the number of chosen keys, or that of all keys where it is quicker to hide the others than to gather the chosen.
    The same inputs give the same bits, gradients too. Nothing waits for a device.

    >>> q = k = v = torch.randn(1, 2, 6, 8)
    >>> chosen = torch.tensor([[[0, -1]] * 6])  # every query sees key 0 alone
    >>> torch.equal(indexed_attention(q, k, v, Selection(chosen))[0, 5], v[0, :, 0])
    True

    Args:
        scaling: Factor on the scores; 1/sqrt(D) by default.
        dropout: Probability that a pair is dropped, the others scaled up; drawn from torch's generator at each call.
        softcap: Scores become `softcap · tanh(score / softcap)`.
        sinks: One logit a head that joins the softmax's denominator only.

    Raises:
        ValueError: Shapes, dtypes or settings that do not fit; the message names the argument and the fix.
    """
    query, key, value = _autocast(query, key, value)
    _check_tensors(query, key, value, sinks)
    _check_selection(selection, query, key)
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    _check_settings(scaling, dropout, softcap)
    seed = torch.randint(2**62, (1,)) if dropout else None  # stays on the host, where generators are seeded
    inputs = query, key, value, sinks, seed, selection.indices, selection.mask, selection.block_size
    return torch.ops.gossamer.attend_selected(*inputs, scaling, float(softcap or 0.0), float(dropout))[0]


@torch.library.impl("gossamer::attend_selected", "CompositeExplicitAutograd")
def _attend(*inputs: Any) -> tuple[Tensor, Tensor]:
    given = _given(*inputs)
    with torch.autocast(given.q.device.type, enabled=False):
        return forward(given)


@torch.library.impl("gossamer::attend_selected_backward", "CompositeExplicitAutograd")
def _attend_backward(grad_out: Tensor, out: Tensor, lse: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    given = _given(*inputs)
    with torch.autocast(given.q.device.type, enabled=False):
        return backward(given, grad_out, out, lse)


@torch.library.register_fake("gossamer::attend_selected")
def _shapes(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, heads, queries = q.shape[:3]
    lse = q.new_empty(batch, heads, queries, dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(batch, queries, heads, v.shape[3]), lse


@torch.library.register_fake("gossamer::attend_selected_backward")
def _backward_shapes(
    grad_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    dsinks = q.new_empty(0, dtype=lse.dtype) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(q), k.new_empty(k.shape), v.new_empty(v.shape), dsinks


def _given(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, seed: Tensor | None, *others: Any) -> Inputs:
    indices, mask, block_size, scale, softcap, dropout = others
    return Inputs(q, k, v, sinks, Selection(indices, block_size, mask), Softmax(scale, softcap, dropout, seed))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.block_size, ctx.scale, ctx.softcap, ctx.dropout = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 11
    settings = ctx.block_size, ctx.scale, ctx.softcap, ctx.dropout
    *found, dsinks = torch.ops.gossamer.attend_selected_backward(grad_out, *ctx.saved_tensors, *settings)
    return *found, dsinks if dsinks.numel() else None, *(None,) * 7


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("indexed_attention has no gradients of gradients; leave create_graph out")


torch.library.register_autograd("gossamer::attend_selected", _gradients, setup_context=_save)
torch.library.register_autograd("gossamer::attend_selected_backward", _refuse_second_gradients)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast asks for on their device, as scaled_dot_product_attention does."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4 or x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} is {x.dtype} of shape {tuple(x.shape)} on {x.device}; give [batch, heads, length, width] of "
                f"{query.dtype} on {query.device}, as query is"
            )
    (batch, heads, _, width), (_, key_heads, keys, _) = query.shape, key.shape
    if key.shape != (batch, key_heads, keys, width) or value.shape[:3] != key.shape[:3] or 0 in (keys, width):
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: all share "
            f"the batch, query and key a width of at least 1, key and value the heads and a length of at least 1"
        )
    if key_heads == 0 or heads % key_heads or heads == 0:
        raise ValueError(f"query has {heads} heads and key has {key_heads}; the key heads must divide the query heads")
    if sinks is not None and (sinks.shape != (heads,) or sinks.device != query.device):
        raise ValueError(f"sinks is {tuple(sinks.shape)} on {sinks.device}; give {heads} logits on {query.device}")


def _check_selection(selection: Selection, query: Tensor, key: Tensor) -> None:
    if not isinstance(selection, Selection):
        raise ValueError(f"selection is a {type(selection).__name__}; give Selection(indices)")
    indices, mask = selection.indices, selection.mask
    (batch, _, queries, _), (_, key_heads, keys, _) = query.shape, key.shape
    runs = indices.shape[1] if indices.ndim == 4 else 0
    fits = runs > 0 and key_heads % runs == 0 and (indices.shape[0], indices.shape[2]) == (batch, queries)
    if not fits or indices.dtype not in (torch.int32, torch.int64) or indices.device != query.device:
        raise ValueError(
            f"indices is {indices.dtype} of shape {tuple(indices.shape)} on {indices.device}; give int32 or int64 of "
            f"[{batch}, N, {queries}, n] on {query.device}, where N divides the {key_heads} key heads"
        )
    if selection.block_size < 1:
        raise ValueError(f"block_size is {selection.block_size}; give at least 1")
    if mask is None:
        return
    shape = tuple(mask.shape)
    fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, runs) and shape[2] in (1, queries)
    if not fits or shape[3] < keys or mask.device != query.device:
        raise ValueError(
            f"mask is of shape {shape} on {mask.device}; give [{batch}, 1, {queries}, {keys}] on {query.device}, or 1 "
            f"in place of the first or the third"
        )


def _check_settings(scaling: float, dropout: float, softcap: float | None) -> None:
    if not math.isfinite(scaling):
        raise ValueError(f"scaling is {scaling!r}; give a finite number, or None for 1/sqrt(width)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout!r}; give a probability of at least 0 and below 1")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap!r}; give a positive number, or None for no cap")
