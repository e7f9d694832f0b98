"""`BlockIndexedAttention`: grouped attention to blocks that an index branch chooses (MiniMax-M3, arXiv 2606.13392)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config.rotary import RotaryConfig
from ..indexed import attend_indexed
from ..selectors.block_topk import BlockTopK
from ..selectors.peaks import MSA, highest_score_selection
from ..selectors.selection import Selection
from .grouped import GroupedHeads
from .heads import require_sizes, split
from .indexer import Projected
from .indexing import Indexing
from .norms import ShiftedRMSNorm
from .partial_rotary import require_turned, turned_first
from .whole_cache import WholeCache

ROTARY = RotaryConfig(theta=5_000_000.0)


class BlockIndexer(nn.Module):
    """Which blocks each query sees: an index head for each key head, and one index key a token, which all share.

    The tokens' scores become their blocks' by the highest. No gradient comes back through the choice; the paper trains
    the branch by a divergence of its own.

    >>> BlockIndexer(32, 2, index_width=16, choice=BlockTopK(8, 3))(torch.randn(1, 40, 32)).indices.shape
    torch.Size([1, 2, 40, 3])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        index_width: int = 128,
        choice: BlockTopK = MSA,
        rotary: RotaryConfig | None = ROTARY,
        rotary_width: int | None = None,
        eps: float = 1e-6,
    ):
        super().__init__()
        require_sizes("BlockIndexer", {"width": width, "heads": heads, "index_width": index_width})
        self.heads, self.choice, self.rotary = heads, choice, rotary
        self.rotary_width = index_width // 2 * 2 if rotary_width is None else rotary_width
        require_turned("BlockIndexer", self.rotary_width, index_width)
        self.q_proj = nn.Linear(width, heads * index_width, bias=False)
        self.k_proj = nn.Linear(width, index_width, bias=False)
        self.q_norm = ShiftedRMSNorm(index_width, eps)
        self.k_norm = ShiftedRMSNorm(index_width, eps)

    def project(
        self, x: Float[Tensor, "B N E"], past: int = 0
    ) -> tuple[Float[Tensor, "B J N D"], Float[Tensor, "B N D"]]:
        """Index queries and the index keys of tokens that stand behind `past` others."""
        q = self.q_norm(split(self.q_proj(x), self.heads))
        k = self.k_norm(split(self.k_proj(x), 1))
        at = torch.arange(past, past + x.shape[1], device=x.device)
        q, k = (turned_first(each, at, self.rotary, self.rotary_width) for each in (q, k))
        return q, k[:, 0]

    def forward(self, x: Float[Tensor, "B N E"]) -> Selection:
        """The blocks that each token of a whole sequence sees."""
        return highest_score_selection(*self.project(x), self.choice)


class BlockIndexedAttention(GroupedHeads):
    """Causal grouped self-attention over the blocks that the index branch chooses for each key head.

    Queries and keys are normalised a head and turned in their first `rotary_width` features. Where the choice has as
    many blocks as there are, this is full attention.

    >>> layer = BlockIndexedAttention(64, 4, 2, head_width=16, index_width=16, choice=BlockTopK(16, 3))
    >>> layer(torch.zeros(1, 100, 64)).shape
    torch.Size([1, 100, 64])

    Args:
        choice: Size and number of blocks; by default 16 of 128 tokens, the query's own always among them.
        rotary_width: Features that positions turn, in attention and index branch; all by default, 64 in MiniMax-M3.

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        *,
        head_width: int = 128,
        index_width: int = 128,
        choice: BlockTopK = MSA,
        rotary: RotaryConfig | None = ROTARY,
        rotary_width: int | None = None,
    ):
        super().__init__(width, heads, key_heads, head_width, rotary=rotary)
        self.rotary_width = head_width // 2 * 2 if rotary_width is None else rotary_width
        require_turned("BlockIndexedAttention", self.rotary_width, head_width)
        self.q_norm = ShiftedRMSNorm(head_width)
        self.k_norm = ShiftedRMSNorm(head_width)
        self.indexer = BlockIndexer(
            width, key_heads, index_width=index_width, choice=choice, rotary=rotary, rotary_width=rotary_width
        )

    def forward(
        self, x: Float[Tensor, "B N E"], return_intermediate: bool = False, *, cache: WholeCache | None = None
    ) -> Float[Tensor, "B N E"] | tuple[Float[Tensor, "B N E"], list[Indexing]]:
        """Attention of `x` to itself and to the tokens of earlier calls with the same `cache`, which holds them all.

        Args:
            return_intermediate: Return (output, for each key head the keys that were seen, by their own numbers, and
                what its index head learns from; an index's scores are products here, and below zero too).
        """
        past = 0 if cache is None else cache.seen
        at = torch.arange(past, past + x.shape[1], device=x.device)
        q, k, v = self.project(x)
        q = turned_first(self.q_norm(q), at, self.rotary, self.rotary_width)
        k = turned_first(self.k_norm(k), at, self.rotary, self.rotary_width)
        with torch.set_grad_enabled(return_intermediate and torch.is_grad_enabled()):
            index_q, index_k = self.indexer.project(x.detach(), past)
        if cache is not None:
            k, v, index_k = cache.extend([k, v, index_k])
        selection = highest_score_selection(index_q, index_k, self.indexer.choice)
        out, lse = attend_indexed(q, k, v, selection, return_lse=True)
        if not return_intermediate:
            return self.merge(out)
        return self.merge(out), _seen_by_each(q.detach(), k.detach(), lse.detach(), index_q, index_k, selection)


def _seen_by_each(
    q: Tensor, k: Tensor, lse: Tensor, index_q: Tensor, index_k: Tensor, selection: Selection
) -> list[Indexing]:
    """Of each key head what it and its query heads saw, and its index head's part of the index."""
    groups, size = k.shape[1], selection.block_size
    blocks = selection.indices[..., None]
    inside = torch.arange(size, dtype=blocks.dtype, device=blocks.device)
    keys = torch.where(blocks < 0, -1, blocks * size + inside).flatten(-2)  # [B, G, N, n · size]
    weights = index_q.new_ones(*index_q.shape[::2], 1, dtype=torch.promote_types(index_q.dtype, torch.float32))
    scale, seen = q.shape[-1] ** -0.5, []
    every = (x.chunk(groups, 1) for x in (q, k, lse, index_q))
    for of_q, of_k, of_lse, of_index, chosen in zip(*every, keys.unbind(1), strict=True):
        index = Projected(of_index, index_k, weights)
        seen.append(Indexing(Selection(chosen, causal=True), index, of_q, of_k, of_lse, scale))
    return seen
