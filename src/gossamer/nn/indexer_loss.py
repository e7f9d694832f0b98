"""How far an indexer is from where the heads of its layer look: what it learns from."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..indexed import indexer_loss
from .indexer import LightningIndexer
from .indexing import Indexing


def loss_of(indexer: LightningIndexer, seen: Indexing) -> Float[Tensor, ""]:
    """KL divergence of the indexer's softmax from attention summed over heads, the mean over queries, in nats.

    Both are over the keys that the layer saw: all up to each query in the warm-up, the chosen ones in the sparse
    stage. It is `indexer_loss` of what the layer handed over; gradients reach the indexer alone.

    DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556), section 2.1.1.

    Raises:
        ValueError: The layer took another one's selection, and made no index.
    """
    if seen.index is None:
        raise ValueError("seen.index is None: the layer took another one's selection; ask the layer that chose")
    within = seen.within if seen.selection is None else None  # a selection holds nothing from outside
    return indexer_loss(
        seen.index, seen.q, seen.k, seen.lse, seen.selection, scale=seen.scale, relu=indexer.config.relu, within=within
    )


def mass_of_all(seen: Indexing, lse: Float[Tensor, "B H Q"], rows: slice) -> Float[Tensor, "B b K"]:
    """Attention of some queries, given the log-sum-exp over all their keys, summed over heads; -1 where none is seen.

    Of all keys up to each query and within its sequence, whatever the layer saw.
    """
    groups = seen.k.shape[1]
    q = _wide(seen.q[:, :, rows]).unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, H/G · b, D]
    scores = seen.scale * (q @ _wide(seen.k).mT).unflatten(2, (-1, rows.stop - rows.start)).flatten(1, 2)
    return (scores - lse[:, :, rows, None]).exp().sum(1).masked_fill(~_seen_by_all(seen, rows), -1.0)


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
