"""What a layer's indexer makes of its tokens: the keys that each query shall see, and the loss that it learns from."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn

from ..indexed import Selection, indexer_loss
from .indexer import LightningIndexer, Projected
from .surroundings import Surroundings

Stage = Literal["warm_up", "sparse"]


def chosen(indexer: LightningIndexer, index: Projected, within: Int32[Tensor, "B 2"] | None = None) -> Selection | None:
    """The best keys of each query at or before it; None where there are no more keys than may be chosen.

    Args:
        index: The queries and weights of the last tokens, and the keys of all.
        within: Where each sequence lies in its row, from where to before where: nothing else is chosen, and a query
            elsewhere has nothing.
    """
    q, k, weights = index
    if k.shape[1] <= indexer.config.index_topk:
        return None
    if within is None:
        return Selection(indexer.choose(q, k, weights))
    first, end = within[:, :1], within[:, 1:]  # [B, 1]
    places = torch.arange(k.shape[1], device=within.device)
    # A query may choose among some first keys, so each row's keys move forward by what stands before its sequence.
    moved = (places + first).clamp(0, k.shape[1] - 1)[..., None].expand(-1, -1, k.shape[2])
    at = places[k.shape[1] - q.shape[2] :]
    visible = torch.where((at >= first) & (at < end), at + 1 - first, 0)  # [B, Q]
    found = indexer.choose(q, k.gather(1, moved), weights, visible=visible)
    return Selection(torch.where(found < 0, found, found + first[..., None].to(found.dtype)))


def all_places(
    keys: int, queries: int, within: Int32[Tensor, "B 2"] | None, device: torch.device
) -> tuple[Int32[Tensor, "*B K"], Bool[Tensor, "B 1 Q"] | None]:
    """(numbers of all keys, -1 for those outside of a row's sequence; which of the last queries stand outside).

    Numbers are one row, or one for each sequence, whatever the queries: expanded, they take no memory for each.
    """
    places = torch.arange(keys, dtype=torch.int32, device=device)
    if within is None:
        return places[None], None
    inside = (places >= within[:, :1]) & (places < within[:, 1:])  # [B, K]
    return torch.where(inside, places, -1), ~inside[:, None, keys - queries :]


class Indexing(NamedTuple):
    """What an indexed layer looked at in the run that returned this, and what its indexer learns from.

    A tuple: FSDP2 gathers a layer's weights for its backward when what the layer gave has a gradient, and torch 2.11
    finds no tensors in a dataclass.
    """

    selection: Selection | None
    """The keys that were seen; None: all up to each query. A later layer may take it as its own."""
    index: Projected | None
    """What the indexer made of the tokens, where the layer has one."""
    q: Float[Tensor, "B H Q D"]
    k: Float[Tensor, "B G K D"]
    lse: Float[Tensor, "B H Q"]
    scale: float
    within: Int32[Tensor, "B 2"] | None = None
    """Where each sequence lies in its row; None: all of it."""


def loss_of(indexer: LightningIndexer, seen: Indexing) -> Float[Tensor, ""]:
    """What an indexer learns from: how far its softmax is from where the heads of its layer look, over what it saw.

    `indexer_loss` of all keys up to each query in the warm-up, of the chosen ones in the sparse stage. Gradients reach
    the indexer alone.

    Raises:
        ValueError: The layer took another one's selection, and made no index.
    """
    if seen.index is None:
        raise ValueError("seen.index is None: the layer took another one's selection; ask the layer that chose")
    within, relu = seen.within if seen.selection is None else None, indexer.config.relu
    of_attention = seen.q, seen.k, seen.lse, seen.selection
    return indexer_loss(tuple(seen.index), *of_attention, scale=seen.scale, relu=relu, within=within)


def attends_to_chosen(owner: nn.Module, stage: str) -> bool:
    """Whether a layer in this stage sees the chosen keys alone.

    Raises:
        ValueError: There is no such stage.
    """
    if stage not in get_args(Stage):
        raise ValueError(f"{type(owner).__name__}: stage is {stage!r}; give 'sparse', or 'warm_up' to see all keys")
    return stage == "sparse"


def located(
    cache: Surroundings | None, within: Int32[Tensor, "B 2"] | None, tokens: int, device: torch.device
) -> Int32[Tensor, "B 2"] | None:
    """Where each sequence lies among all tokens so far; None where all of them are it.

    Raises:
        ValueError: It is said twice: padding is the cache's to know.
    """
    if cache is None:
        return within
    if within is not None:
        raise ValueError("within is given beside a cache; make the cache with KVCache(padding=...) and leave it out")
    if cache.padding is None or not any(cache.padding):
        return None
    return torch.tensor([(pad, cache.length + tokens) for pad in cache.padding], dtype=torch.int32, device=device)
