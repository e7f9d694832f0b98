"""`EntryIndexer`: which compressed entries each query sees, by a small compressor and scores of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from ..config.compressed import CompressedConfig
from ..indexed import top_keys
from .compressor import EntryCompressor
from .heads import split
from .partial_rotary import turned_last


class EntryIndexer(nn.Module):
    """The lightning indexer over entries: `sum_j w_j · relu(q_j · k)`, k an entry of the indexer's own.

    Queries are made from what attention's own are made from. No gradient comes back through the choice.
    """

    def __init__(self, config: CompressedConfig):
        super().__init__()
        shape = config.indexer
        if shape is None:
            raise ValueError("EntryIndexer: config.indexer is None; give an IndexerConfig")
        self.shape, self.rate = shape, config.compress_rate
        self.entries = EntryCompressor(
            config.hidden_size, shape.index_head_dim, config.compress_rate, overlap=config.overlap,
            rotary=shape.rotary, rotary_width=shape.qk_rope_head_dim, eps=config.norm_eps,
        )  # fmt: skip
        self.query = nn.Linear(config.q_lora_rank, shape.index_n_heads * shape.index_head_dim, bias=False)
        self.weight = nn.Linear(config.hidden_size, shape.index_n_heads, bias=False)

    @torch.no_grad()
    def forward(
        self,
        x: Float[Tensor, "B N E"],
        low: Float[Tensor, "B N R"],
        entries: Float[Tensor, "B W D"],
        past: int = 0,
    ) -> Int32[Tensor, "B N n"]:
        """Numbers of the chosen entries, ascending, -1 where a query sees fewer.

        Args:
            low: What queries are made from.
            entries: Index entries of all tokens so far, those of `x` included.
            past: Tokens before those of `x`.
        """
        shape, at = self.shape, torch.arange(past, past + x.shape[1], device=x.device)
        q = turned_last(split(self.query(low), shape.index_n_heads), at, shape.rotary, shape.qk_rope_head_dim)
        weights = self.weight(x).float() * (shape.index_n_heads * shape.index_head_dim) ** -0.5
        count = min(shape.index_topk, entries.shape[1])
        return top_entries(q, entries, weights, count, rate=self.rate, past=past, relu=shape.relu)


def top_entries(
    q: Float[Tensor, "B J N D"],
    entries: Float[Tensor, "B W D"],
    weights: Float[Tensor, "B N J"],
    count: int,
    *,
    rate: int,
    past: int = 0,
    relu: bool = True,
) -> Int32[Tensor, "B N n"]:
    """`top_keys` where a query at position t sees the first `(t + 1) // rate` entries, which are whole by then.

    Of every `rate` neighbouring queries each sees one entry more than the one `rate` before it. So these, one in
    `rate`, are queries of a causal attention to entries, the last of which sees the last entry, and are asked together.

    >>> q, entries, weights = torch.ones(1, 1, 7, 4), torch.randn(1, 3, 4), torch.ones(1, 7, 1)
    >>> top_entries(q, entries, weights, 3, rate=2)[0].tolist()[:4]
    [[-1, -1, -1], [0, -1, -1], [0, -1, -1], [0, 1, -1]]
    """
    tokens = q.shape[2]
    chosen = torch.full((q.shape[0], tokens, count), -1, dtype=torch.int32, device=q.device)
    for first in range(min(rate, tokens)):
        start = first if past + first + 1 >= rate else first + rate  # the first of these that sees an entry
        if start < tokens and count:
            of_these = slice(start, None, rate)
            last = start + (tokens - 1 - start) // rate * rate
            whole = entries[:, : (past + last + 1) // rate]
            chosen[:, of_these] = top_keys(q[:, :, of_these], whole, weights[:, of_these], count, relu=relu)
    return chosen
