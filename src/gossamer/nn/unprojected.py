"""A few tokens attend to a whole sequence whose keys and values are never projected.

A score is q · (W x + c) = (Wᵀ q) · x + q · c. So the few queries take over the projection of the keys, and what the
weights gather of x is projected as values behind the softmax: a few rows are multiplied with the sequence, in place of
its whole width with two projections. What c adds is the same for all keys of a query, and a softmax leaves it out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..ops.boundary import own_dtypes
from .products import wide_product


def attend_unprojected(
    x: Float[Tensor, "B N E"],
    places: Int64[Tensor, "B m"],
    projections: tuple[nn.Module, nn.Linear, nn.Linear],
    heads: int,
    *,
    seen: Bool[Tensor, "B m N"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B m H D"]:
    """Attention of the tokens in these places of their rows to all.

    Args:
        projections: To queries, keys and values. The first is called; of the others the weights are read.
        seen: Which positions each of them sees: one at least.
        dropout: Share of the weights that are dropped.
    """
    query, key, value = projections
    x, rows = _Taken.apply(x, places)
    q = query(rows).unflatten(2, (heads, -1))  # [B, m, H, D]
    keys, values = (linear.weight.unflatten(0, (heads, -1)) for linear in (key, value))  # [H, D, E]
    asking = torch.bmm(_heads_first(q), keys).unflatten(1, q.shape[:2]).permute(1, 2, 0, 3).flatten(1, 2)  # [B, mH, E]
    seen = None if seen is None else seen.repeat_interleave(heads, 1)  # [B, mH, N]
    read, left = _Read.apply(asking, x.to(asking.dtype), key.bias, seen, q.shape[3] ** -0.5, dropout)
    read = _heads_first(read.unflatten(1, (-1, heads)))  # [H, Bm, E]
    out = torch.bmm(values, read.mT).permute(2, 0, 1).unflatten(0, q.shape[:2])
    if value.bias is None:
        return out
    bias = value.bias.unflatten(0, (heads, -1)).to(out.dtype)
    return out + (bias if left is None else left.unflatten(1, (-1, heads))[..., None].to(out.dtype) * bias)


def _heads_first(x: Float[Tensor, "B m H D"]) -> Float[Tensor, "H Bm D"]:
    return x.flatten(0, 1).transpose(0, 1)


class _Taken(torch.autograd.Function):
    """x as it is, for `_Read` alone, and the rows of it in these places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(places)
        return x.view_as(x), x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (dx, drows), (places,) = gradients, ctx.saved_tensors
        # `_Read` has just made dx and nobody else has it, so it needs no copy. No two places of a row are one.
        return dx.scatter_add_(1, places[..., None].expand_as(drows), drows.to(dx.dtype)), None


class _Read(torch.autograd.Function):
    """What softmax weights gather of x [B, mH, E], and what dropout has left of their sum, which is 1."""

    @staticmethod
    def forward(
        ctx: Any, asking: Tensor, x: Tensor, shift: Tensor | None, seen: Tensor | None, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        scores = wide_product(asking, x.mT) * scale
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        weights = scores.softmax(-1)
        keep = F.dropout(torch.ones_like(weights), dropout) if dropout else None
        kept = weights if keep is None else weights * keep
        left = None if keep is None else kept.sum(-1)
        kept = kept.to(x.dtype)
        ctx.scale = scale
        ctx.save_for_backward(asking, x, shift, weights, keep, kept)
        return torch.bmm(kept, x), left

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("LongformerAttention has no gradients of gradients; leave create_graph out")
        dread, dleft = gradients
        asking, x, shift, weights, keep, kept = ctx.saved_tensors
        dscores = wide_product(dread, x.mT)
        if keep is not None:
            dscores = (dscores + dleft[..., None]) * keep
        dscores = torch._softmax_backward_data(dscores, weights, -1, weights.dtype)
        dscores = (dscores * ctx.scale).to(x.dtype)
        with own_dtypes(x.device):
            dx = torch.cat([dscores, kept], 1).mT @ torch.cat([asking, dread], 1)
            dasking = dscores @ x
        dshift = None if shift is None else torch.zeros_like(shift)
        return dasking, dx, dshift, None, None, None
