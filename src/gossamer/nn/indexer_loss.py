"""How far an indexer is from where the heads of its layer look: what it learns from."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..indexed import attention_mass, index_scores
from .indexer import LightningIndexer, Projected
from .indexing import Indexing

QUERIES_AT_ONCE = 256


def loss_of(indexer: LightningIndexer, seen: Indexing) -> Float[Tensor, ""]:
    """KL divergence of the indexer's softmax from attention summed over heads, the mean over queries, in nats.

    Both are over the keys that the layer saw: all up to each query in the warm-up, the chosen ones in the sparse
    stage. A query that saw nothing counts for nothing. Gradients reach the indexer alone. Scores of all keys are made
    for a block of queries at a time, and in the backward again: memory is never that of all pairs.

    DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556), section 2.1.1.

    Raises:
        ValueError: The layer took another one's selection, and made no index.
    """
    if seen.index is None:
        raise ValueError("seen.index is None: the layer took another one's selection; ask the layer that chose")
    q, k, weights = seen.index
    if seen.selection is not None:
        scores = index_scores(q, k, weights, seen.selection, relu=indexer.config.relu)
        sums = _divergence(scores, attention_mass(seen.q, seen.k, seen.lse, seen.selection, seen.scale))
    else:
        parts = []
        for first in range(0, q.shape[2], QUERIES_AT_ONCE):
            rows = slice(first, min(first + QUERIES_AT_ONCE, q.shape[2]))
            index = Projected(q[:, :, rows], k, weights[:, rows])
            parts.append(checkpoint(_divergence_from_all, indexer.config.relu, index, seen, rows, use_reentrant=False))
        sums = torch.stack(parts).sum(0)  # type: ignore[bad-argument-type]
    return sums[0] / sums[1].clamp(min=1)


def mass_of_all(seen: Indexing, lse: Float[Tensor, "B H Q"], rows: slice) -> Float[Tensor, "B b K"]:
    """Attention of some queries, given the log-sum-exp over all their keys, summed over heads; -1 where none is seen.

    Of all keys up to each query and within its sequence, whatever the layer saw.
    """
    groups = seen.k.shape[1]
    q = _wide(seen.q[:, :, rows]).unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, H/G · b, D]
    scores = seen.scale * (q @ _wide(seen.k).mT).unflatten(2, (-1, rows.stop - rows.start)).flatten(1, 2)
    return (scores - lse[:, :, rows, None]).exp().sum(1).masked_fill(~_seen_by_all(seen, rows), -1.0)


def _divergence_from_all(relu: bool, index: Projected, seen: Indexing, rows: slice) -> Float[Tensor, " 2"]:
    """`_divergence` of a block of queries over all their keys."""
    with torch.autocast(seen.q.device.type, enabled=False):
        products = _wide(index.q) @ _wide(index.k)[:, None].mT  # [B, J, b, K]
        products = products.relu() if relu else products
        scores = torch.einsum("bjqk,bqj->bqk", products, index.weights.to(products.dtype))
        with torch.no_grad():
            mass = mass_of_all(seen, seen.lse, rows).to(scores.dtype)
            hidden, mass = mass < 0, mass.clamp(min=0.0)
            mass = mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
        return _divergence(scores.masked_fill(hidden, -torch.inf), mass)


def _divergence(scores: Float[Tensor, "B b n"], mass: Float[Tensor, "B b n"]) -> Float[Tensor, " 2"]:
    """The sum over queries of KL(mass ‖ softmax of the scores), and how many of them saw something."""
    hidden = scores == -torch.inf
    some = ~hidden.all(-1)
    lowest = torch.finfo(scores.dtype).min  # finite: a row of these alone has no gradient that is not a number
    log_softmax = scores.masked_fill(hidden, lowest).log_softmax(-1)
    each = (torch.xlogy(mass, mass) - mass * log_softmax).masked_fill(hidden, 0.0).sum(-1)
    return torch.stack([each.masked_fill(~some, 0.0).sum(), some.sum().to(each.dtype)])


def _seen_by_all(seen: Indexing, rows: slice) -> Bool[Tensor, "B b K"]:
    """Whether each key stands at or before some queries, in their sequence."""
    keys, queries = seen.k.shape[2], seen.q.shape[2]
    places = torch.arange(keys, device=seen.q.device)
    at = places[keys - queries :][rows, None]
    past = (places <= at).expand(len(seen.q), -1, -1)
    if seen.within is None:
        return past
    first, end = seen.within[:, :1, None], seen.within[:, 1:, None]
    return past & (places >= first) & (at >= first) & (at < end)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
