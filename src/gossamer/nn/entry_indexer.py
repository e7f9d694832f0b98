"""`EntryIndexer`: which compressed entries each query sees, by a small compressor and scores of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from ..config import CompressedConfig, IndexerConfig
from ..indexed import top_keys
from ..selectors.quantized import hadamard
from .compressor import EntryCompressor
from .heads import split
from .indexer import Projected, head_weights
from .partial_rotary import turned_last


class EntryIndexer(EntryCompressor):
    """The lightning indexer over entries: `sum_j w_j · relu(q_j · k)`, k an entry of the indexer's own.

    Queries are made from what attention's own are made from. Its weights learn from a loss of their own: no gradient
    reaches what it is given, and none comes back through the choice.
    """

    def __init__(self, config: CompressedConfig, shape: IndexerConfig):
        super().__init__(
            config.hidden_size, shape.index_head_dim, config.compress_rate, overlap=config.overlap,
            rotary=shape.rotary, rotary_width=shape.qk_rope_head_dim, eps=config.norm_eps,
        )  # fmt: skip
        self.shape = shape
        self.q_b_proj = nn.Linear(config.q_lora_rank, shape.index_n_heads * shape.index_head_dim, bias=False)
        self.scorer = nn.ModuleDict({"weights_proj": nn.Linear(config.hidden_size, shape.index_n_heads, bias=False)})

    def forward(self, x: Float[Tensor, "B N E"], past: int = 0) -> Float[Tensor, "B W D"]:
        """The entries that scores are made with, as an `EntryCompressor` makes them."""
        return self._rotated(super().forward(x, past))

    def project(
        self,
        x: Float[Tensor, "B N E"],
        low: Float[Tensor, "B N R"],
        entries: Float[Tensor, "B W D"],
        past: int = 0,
    ) -> Projected:
        """Index queries and weights of these tokens, beside the entries of all so far.

        Args:
            low: What queries are made from.
            entries: What the indexer, called with the tokens, has made of them.
            past: Tokens before those of `x`.
        """
        shape, at = self.shape, torch.arange(past, past + x.shape[1], device=x.device)
        q = split(self.q_b_proj(low.detach()), shape.index_n_heads)
        weights = head_weights(self.scorer["weights_proj"], x, shape)  # type: ignore[bad-argument-type]
        return Projected(self._rotated(turned_last(q, at, shape.rotary, shape.qk_rope_head_dim)), entries, weights)

    def choose(self, index: Projected, past: int = 0) -> Int32[Tensor, "B N n"]:
        """Numbers of the chosen entries, ascending, -1 where a query sees fewer: those whose tokens have all come."""
        q, entries, weights = index
        count = max(min(self.shape.index_topk, entries.shape[1]), 1)
        at = torch.arange(past, past + q.shape[2], device=q.device)
        whole = ((at + 1) // self.rate).expand(q.shape[0], -1)
        options = {"relu": self.shape.relu, "precision": self.shape.precision}
        return top_keys(q, entries, weights, count, causal=False, visible=whole, **options)  # type: ignore[bad-argument-type]

    def _rotated(self, x: Tensor) -> Tensor:
        return hadamard(x) if self.shape.hadamard else x


class IndexedCompressor(EntryCompressor):
    """Entries for attention, and beside them an indexer that chooses among them."""

    def __init__(self, config: CompressedConfig, shape: IndexerConfig):
        super().__init__(
            config.hidden_size, config.head_dim, config.compress_rate, overlap=config.overlap,
            rotary=config.rotary, rotary_width=config.qk_rope_head_dim, eps=config.norm_eps,
        )  # fmt: skip
        self.indexer = EntryIndexer(config, shape)
