"""`indexer_loss`: what a learned index is taught by attention."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from ..inputs import autocast, check_attention, check_kinds, check_scale, check_within
from ..ops import warm_up as _operators  # noqa: F401  registers the operator
from ..selectors.selection import Selection
from .scores import attention_mass, index_scores
from .top_keys import check_index

Index = tuple[Float[Tensor, "B J Q d"], Float[Tensor, "B K d"], Float[Tensor, "B Q J"]]
"""Queries, keys and weights."""


def indexer_loss(
    index: Index,
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    lse: Float[Tensor, "B H Q"],
    selection: Selection | None = None,
    *,
    scale: float | None = None,
    relu: bool = True,
    within: Int32[Tensor, "B 2"] | None = None,
) -> Float[Tensor, ""]:
    """KL divergence of the index's softmax from where all heads of attention look, averaged over queries, in nats.

    Both are over the keys of `selection`, and without one over all keys up to each query, for an index that learns
    before anything is chosen by it. Where heads look is the sum of their probabilities, made from `lse` and divided by
    what it comes to: so the log-sum-exp may count sinks, or keys elsewhere. A query that sees nothing, or whose heads
    all look elsewhere, counts for nothing. Gradients reach the index alone; attention and the trunk learn nothing.
    Over all keys memory is that of a block of pairs, never of all. The same inputs give the same bits.

    DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556), section 2.1.1.

    >>> q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)  # every head looks at all keys alike
    >>> lse = torch.log(torch.arange(1.0, 4.0)).expand(1, 2, 3)
    >>> index = torch.zeros(1, 1, 3, 4), torch.zeros(1, 3, 4), torch.ones(1, 3, 1)  # and so does the index
    >>> indexer_loss(index, q, k, lse).abs().item() < 1e-6
    True

    Args:
        index: What `LightningIndexer.project` gives: queries, keys and weights.
        q: Queries of attention.
        k: Its keys, or latents as one head of them.
        lse: The natural log-sum-exp that attention returned.
        selection: Single keys, one choice for all heads: those that attention saw.
        scale: Factor on attention's scores; 1/sqrt(D) by default.
        relu: Whether the index counts products below zero as zero.
        within: As for `attend`: where each sequence begins and ends. A selection says that itself.

    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit; the message names the argument and the fix.
    """
    index_q, index_k, weights = index
    check_kinds({"index_q": index_q, "index_k": index_k, "weights": weights, "q": q, "k": k, "lse": lse})
    index_q, index_k, _ = autocast(index_q, index_k, index_k)
    q, k, _ = autocast(q.detach(), k.detach(), k.detach())
    _check(index_q, index_k, weights, q, k, lse)
    _check_within(within, selection, q)
    check_scale(scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    lse = lse.detach().to(weights.dtype)
    if selection is not None:
        mass = attention_mass(q, k, lse, selection, scale)
        rows = _divergence(index_scores(index_q, index_k, weights, selection, relu=relu), mass)
        looks = mass.sum(-1) > 0
    else:
        given = q, k, lse, index_q, index_k, weights, within, scale, bool(relu)
        rows, mass, _ = torch.ops.gossamer.warm_up_divergence(*given)
        looks = mass > 0
    return rows.sum() / looks.sum().clamp(min=1)


def _divergence(scores: Tensor, mass: Tensor) -> Tensor:
    """[B, Q]: KL(mass ‖ softmax of the scores); 0 where there is no mass."""
    some = (mass > 0).any(-1, keepdim=True)
    scores = torch.where(some, scores, 0.0)  # a row of minus infinity alone would have gradients that are no numbers
    product = mass * scores.masked_fill(mass == 0, 0.0)
    rows = (torch.xlogy(mass, mass) - product).sum(-1) + scores.logsumexp(-1)
    return torch.where(some[..., 0], rows, 0.0)


def _check(index_q: Tensor, index_k: Tensor, weights: Tensor, q: Tensor, k: Tensor, lse: Tensor) -> None:
    check_index(index_q, index_k, weights)
    check_attention(q, k, k)
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    if (index_q.shape[0], index_q.shape[2], index_k.shape[1]) != (batch, queries, keys):
        raise ValueError(
            f"index has queries {list(index_q.shape)} and keys {list(index_k.shape)}; give "
            f"[{batch}, index heads, {queries}, width] and [{batch}, {keys}, width], those of the tokens of q and k"
        )
    if lse.shape != (batch, heads, queries) or not lse.is_floating_point():
        raise ValueError(f"lse is {lse.dtype} {list(lse.shape)}; give the log-sum-exp [{batch}, {heads}, {queries}]")
    for name, x in {"index": index_q, "lse": lse}.items():
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}; put them on one device")


def _check_within(within: Tensor | None, selection: Selection | None, q: Tensor) -> None:
    if within is None:
        return
    if selection is not None:
        raise ValueError("within is given beside a selection; leave keys elsewhere out of the selection")
    check_within(within, q)
