"""One softmax over the keys of a pattern and over a few chosen ones outside it.

The pattern's own attention gives an output and a log-sum-exp, and a product with the few keys gives their scores: the
softmax over the log-sum-exp and these says how much of each to take. Backward, the pattern's own gradients need nothing
but the output and the log-sum-exp of the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..inputs import autocast, check_attention, check_within
from ..ops.attend import attend_backward_eagerly, attend_eagerly
from ..ops.boundary import own_dtypes
from ..patterns.base import Pattern
from ..patterns.parse import checked_text
from .global_tokens import GlobalTokens
from .heads import apart, merged, split, together
from .products import wide_product

ALONE = 1e30
"""The log-sum-exp of a query that takes nothing of few keys: beside it every score has the weight 0."""

NOTHING = -1e3
"""The logarithm of a share that is 0 in any precision: where the sum would be infinite, a kernel would make NaN."""


class Seen(NamedTuple):
    """Who sees whom."""

    pattern: Pattern
    """Every query sees a key in it."""
    outside: Float[Tensor, "B G m N"]
    """Added to scores of chosen keys, for each head or for all: 0, or minus infinity if hidden or in the pattern."""
    within: Int[Tensor, "B 2"] | None = None
    """Outside of `within[b, 0]` ... `within[b, 1] - 1` queries see nothing, and give zeros."""


def attend_with_few(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    chosen: GlobalTokens,
    seen: Seen,
    *,
    rows: Float[Tensor, "T H D"],
    dropout: float = 0.0,
) -> Float[Tensor, "B N E"]:
    """Attention to the pattern's keys and the chosen ones, with `rows` in place of what the chosen tokens attend to.

    Args:
        rows: One for each of `chosen.places`.
        dropout: Share of the weights that are dropped.
    """
    q, k, v = autocast(q, k, v)
    check_attention(q, k, v)
    pattern, outside, within = seen
    if within is not None:
        check_within(within, q)
    seed = torch.randint(2**62, (1,), device=q.device) if dropout else None
    text = pattern.spec if torch.compiler.is_compiling() else checked_text(pattern)
    settings = text, q.shape[-1] ** -0.5, 0.0, float(dropout), None
    tokens = chosen.mask, chosen.flat, chosen.places, chosen.slices(q.shape[1], q.shape[3], q.dtype)
    return _Joined.apply(q, k, v, rows.to(q.dtype), *tokens, outside, within, seed, settings)


class _Joined(torch.autograd.Function):
    """The attention of both, and the chosen tokens' own rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
        rows, mask, flat, places, slices, outside, within, seed, settings = others
        heads, (_, scale, _, dropout, _) = q.shape[1], settings
        own, lse = attend_eagerly(q, k, v, None, seed, None, within, *settings)
        alone = mask[:, None] if within is None else mask[:, None] | (lse == -torch.inf)
        lse = lse.masked_fill(alone, ALONE)
        few_k, few_v = (apart(_rows(x, flat), slices) for x in (k, v))  # [B, Hm, E]
        scores = wide_product(few_k, merged(q).mT).unflatten(1, (heads, -1))  # [B, H, m, N]
        scores = torch.add(outside, scores, alpha=scale)
        weights = torch.cat([lse[:, :, None], scores], 2).softmax(2)
        share, weights = weights[:, :, 0], weights[:, :, 1:]
        keep = F.dropout(torch.ones_like(weights), dropout) if dropout else None
        kept = (weights if keep is None else weights * keep).to(v.dtype).flatten(1, 2)
        out = merged(own.mul_(share[..., None])).baddbmm_(kept.mT, few_v)
        out.flatten(0, 1).unflatten(1, (heads, -1)).index_copy_(0, places, rows)
        total = lse - share.log().clamp(min=NOTHING)
        ctx.settings = settings
        ctx.save_for_backward(
            q, k, v, out, total, seed, within, few_k, few_v, weights, keep, kept, slices, flat, places
        )
        return out.view_as(out)  # torch.compile of torch 2.11 loses gradients of what changed in place (pytorch#180642)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("LongformerAttention has no gradients of gradients; leave create_graph out")
        q, k, v, out, total, seed, within, *few, slices, flat, places = ctx.saved_tensors
        few_k, few_v, weights, keep, kept = few
        (grad,), heads, scale = gradients, q.shape[1], ctx.settings[1]
        given = split(grad, heads), None, q, k, v, split(out, heads), total, None, seed, None, within
        dq, dk, dv, _ = attend_backward_eagerly(*given, *ctx.settings)
        dkept = wide_product(few_v, grad.mT).view_as(weights)
        dkept = dkept if keep is None else dkept * keep
        # The sums over each head, as a product: a GPU takes longer for so many short sums.
        dots = wide_product(slices.expand(len(grad), -1, -1), (grad * out).mT)  # [B, H, N]
        dscores = torch.empty_like(kept)  # [B, Hm, N]
        torch.mul(weights, dkept - dots[:, :, None], out=dscores.view_as(weights))  # in float32, and then rounded
        dq = split(merged(dq).baddbmm_(dscores.mT, few_k, alpha=scale), heads)
        with own_dtypes(q.device):
            dk = _added(dk, flat, together(dscores @ merged(q), heads), scale)
            dv = _added(dv, flat, together(kept @ grad, heads))
        drows = grad.flatten(0, 1).index_select(0, places).unflatten(1, (heads, -1))
        return dq, dk, dv, drows, *(None for _ in range(8))


def _rows(x: Float[Tensor, "B H N D"], flat: Tensor) -> Float[Tensor, "B m E"]:
    return merged(x).flatten(0, 1).index_select(0, flat).unflatten(0, (x.shape[0], -1))


def _added(
    x: Float[Tensor, "B H N D"], flat: Tensor, rows: Float[Tensor, "B m H D"], factor: float = 1.0
) -> Float[Tensor, "B H N D"]:
    """`x`, which may be changed, with rows added in these places; no two are one."""
    whole = x.transpose(1, 2).flatten(0, 1)  # a copy where heads are not inside of the positions
    return whole.index_add_(0, flat, rows.flatten(0, 1), alpha=factor).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
