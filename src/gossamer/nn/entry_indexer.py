"""`EntryIndexer`: which compressed entries each query sees, by a small compressor and scores of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from ..config import CompressedConfig, IndexerConfig
from ..indexed import top_keys
from .compressor import EntryCompressor
from .heads import split
from .partial_rotary import turned_last


class EntryIndexer(EntryCompressor):
    """The lightning indexer over entries: `sum_j w_j · relu(q_j · k)`, k an entry of the indexer's own.

    Queries are made from what attention's own are made from. No gradient comes back through the choice.
    """

    def __init__(self, config: CompressedConfig, shape: IndexerConfig):
        super().__init__(
            config.hidden_size, shape.index_head_dim, config.compress_rate, overlap=config.overlap,
            rotary=shape.rotary, rotary_width=shape.qk_rope_head_dim, eps=config.norm_eps,
        )  # fmt: skip
        self.shape = shape
        self.q_b_proj = nn.Linear(config.q_lora_rank, shape.index_n_heads * shape.index_head_dim, bias=False)
        self.scorer = nn.ModuleDict({"weights_proj": nn.Linear(config.hidden_size, shape.index_n_heads, bias=False)})

    @torch.no_grad()
    def choose(
        self,
        x: Float[Tensor, "B N E"],
        low: Float[Tensor, "B N R"],
        entries: Float[Tensor, "B W D"],
        past: int = 0,
    ) -> Int32[Tensor, "B N n"]:
        """Numbers of the chosen entries, ascending, -1 where a query sees fewer: those whose tokens have all come.

        Args:
            low: What queries are made from.
            entries: Index entries of all tokens so far, those of `x` included.
            past: Tokens before those of `x`.
        """
        shape, at = self.shape, torch.arange(past, past + x.shape[1], device=x.device)
        q = turned_last(split(self.q_b_proj(low), shape.index_n_heads), at, shape.rotary, shape.qk_rope_head_dim)
        weights = self.scorer["weights_proj"](x).to(torch.promote_types(x.dtype, torch.float32))
        weights = weights * (shape.index_n_heads * shape.index_head_dim) ** -0.5
        count = max(min(shape.index_topk, entries.shape[1]), 1)
        whole = ((at + 1) // self.rate).expand(x.shape[0], -1)
        return top_keys(q, entries, weights, count, relu=shape.relu, causal=False, visible=whole)


class IndexedCompressor(EntryCompressor):
    """Entries for attention, and beside them an indexer that chooses among them."""

    def __init__(self, config: CompressedConfig, shape: IndexerConfig):
        super().__init__(
            config.hidden_size, config.head_dim, config.compress_rate, overlap=config.overlap,
            rotary=config.rotary, rotary_width=config.qk_rope_head_dim, eps=config.norm_eps,
        )  # fmt: skip
        self.indexer = EntryIndexer(config, shape)
