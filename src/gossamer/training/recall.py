"""How many of the keys that attention looks at most are among those that an indexer chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attention import attend
from ..nn.indexer import LightningIndexer
from ..nn.indexing import Indexing, chosen
from ..patterns import Causal

QUERIES_AT_ONCE = 256


def recall(indexers: Sequence[LightningIndexer], layers: Sequence[Indexing]) -> float | None:
    """Share of the k keys with the most attention, summed over heads, that the k chosen ones hold: recall@k.

    Attention is that to all keys, whatever the layer saw, and the mean is over layers and over the queries that stand
    behind more than k = `index_topk` keys; None where there are no such queries. Memory is that of a block of
    queries, never of all pairs.
    """
    hits, most = recalled(indexers, layers)
    return hits / most if most else None


@torch.no_grad()
def recalled(indexers: Sequence[LightningIndexer], layers: Sequence[Indexing]) -> tuple[int, int]:
    """(how many of the keys with the most attention are chosen, how many there are), of which `recall` is the share."""
    pairs = (_found(indexer, seen) for indexer, seen in zip(indexers, layers, strict=True))
    found = [pair for pair in pairs if pair is not None]
    hits, most = torch.stack(found).sum(0).tolist() if found else (0, 0)
    return hits, most


def _found(indexer: LightningIndexer, seen: Indexing) -> Float[Tensor, " 2"] | None:
    """How many of the most looked at keys are chosen, and how many there are."""
    if seen.index is None:
        raise ValueError("recall: a layer has no indexer; give those that have one")
    count, queries = indexer.config.index_topk, seen.q.shape[2]
    selection = seen.selection or chosen(indexer, seen.index, seen.within)
    if selection is None:
        return None
    _, lse = attend(seen.q, seen.k, seen.k, Causal(), scale=seen.scale, within=seen.within, return_lse=True)
    keys, found = seen.k.shape[2], lse.new_zeros(2, dtype=torch.int64)
    for start in range(0, queries, QUERIES_AT_ONCE):
        rows = slice(start, min(start + QUERIES_AT_ONCE, queries))
        mass = _mass(seen, lse, rows)
        choosy = (mass >= 0).sum(-1) > count
        hits = _is_chosen(selection.indices[:, 0, rows], keys).gather(-1, mass.topk(count, dim=-1).indices).sum(-1)
        found += torch.stack([hits[choosy].sum(), count * choosy.sum()])
    return found


def _is_chosen(indices: Int[Tensor, "B b n"], keys: int) -> Bool[Tensor, "B b K"]:
    """Whether each of all keys is among the chosen."""
    none = torch.zeros(*indices.shape[:-1], keys + 1, dtype=torch.bool, device=indices.device)
    return none.scatter_(-1, indices.long().where(indices >= 0, keys), True)[..., :keys]


def _mass(seen: Indexing, lse: Float[Tensor, "B H Q"], rows: slice) -> Float[Tensor, "B b K"]:
    """Attention of some queries, given the log-sum-exp over all their keys, summed over heads; -1 where none is seen.

    Of all keys up to each query and within its sequence, whatever the layer saw.
    """
    groups = seen.k.shape[1]
    q = _wide(seen.q[:, :, rows]).unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, H/G · b, D]
    scores = seen.scale * (q @ _wide(seen.k).mT).unflatten(2, (-1, rows.stop - rows.start)).flatten(1, 2)
    return (scores - lse[:, :, rows, None]).exp().sum(1).masked_fill(~_seen(seen, rows), -1.0)


def _seen(seen: Indexing, rows: slice) -> Bool[Tensor, "B b K"]:
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
