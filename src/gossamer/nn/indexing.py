"""What a layer's indexer makes of its tokens: the keys that each query shall see, and the loss that it learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from ..config import IndexerConfig
from ..indexed import Selection, indexer_loss, top_keys
from .cache import KVCache
from .indexer import LightningIndexer

Stage = Literal["warm_up", "sparse"]


@dataclass(frozen=True, eq=False)
class Index:
    """Queries, keys and weights of an indexer, by which a pair scores `Σ_j weight_j · relu(query_j · key)`."""

    q: Float[Tensor, "B J Q D"]
    k: Float[Tensor, "B K D"]
    weights: Float[Tensor, "B Q J"]
    config: IndexerConfig

    @classmethod
    def of(
        cls,
        indexer: LightningIndexer,
        x: Float[Tensor, "B N E"],
        source: Float[Tensor, "B N R"],
        at: Int64[Tensor, "*B N"],
    ) -> Self:
        """What `indexer` makes of tokens at these positions; no gradient passes on to them."""
        x, source = x.detach(), source.detach()
        return cls(indexer.queries(source, at), indexer.keys(x, at), indexer.weights(x), indexer.config)

    def choose(self, within: Int32[Tensor, "B 2"] | None = None) -> Selection | None:
        """The `index_topk` best keys of each query at or before it, of equal ones the older; None where there are no
        more keys than that. No gradient reaches the choice.

        Args:
            within: Where each sequence lies in its row, from where to before where: nothing else is chosen, and a
                query elsewhere has nothing.
        """
        count, relu, keys = self.config.index_topk, self.config.relu, self.k.shape[1]
        if keys <= count:
            return None
        if within is None:
            return Selection(top_keys(self.q, self.k, self.weights, count, relu=relu))
        first, end = within[:, :1], within[:, 1:]  # [B, 1]
        places = torch.arange(keys, device=within.device)
        # A choice is among the first keys, so each row's keys move forward by what stands before its sequence.
        moved = (places + first).clamp(0, keys - 1)[..., None].expand(-1, -1, self.k.shape[2])
        at = places[keys - self.q.shape[2] :]
        visible = torch.where((at >= first) & (at < end), at + 1 - first, 0)  # [B, Q]
        k = self.k.gather(1, moved)
        found = top_keys(self.q, k, self.weights, count, relu=relu, causal=False, visible=visible)
        return Selection(torch.where(found < 0, found, found + first[..., None].to(found.dtype)))


@dataclass(frozen=True, eq=False)
class Indexing:
    """What an indexed layer looked at in the run that returned this, and what its indexer learns from."""

    selection: Selection | None
    """The keys that were seen; None: all up to each query. A later layer may take it as its own."""
    index: Index | None
    """What the indexer made of the tokens, where the layer has one."""
    q: Float[Tensor, "B H Q D"]
    k: Float[Tensor, "B G K D"]
    lse: Float[Tensor, "B H Q"]
    scale: float

    def loss(self) -> Float[Tensor, ""]:
        """KL divergence of the indexer's softmax from where all heads looked, averaged over queries.

        It is taken over the keys that were seen. Gradients reach the indexer alone.

        Raises:
            ValueError: The layer has no indexer.
        """
        if self.index is None:
            raise ValueError("Indexing.loss: the layer has no indexer; ask the layer whose selection it took")
        return indexer_loss(self)


def located(
    cache: KVCache | None, within: Int32[Tensor, "B 2"] | None, tokens: int, device: torch.device
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
