"""`NSA`: how keys are cut into blocks, and which blocks a query selects (Yuan et al. 2025, arXiv 2502.11089)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ..patterns.base import require_integer
from .block_topk import BlockTopK, positions_of, query_chunks
from .selection import Selection


@dataclass(frozen=True)
class NSA:
    """Overlapping blocks that become one key each, larger ones that are selected, and a window. Defaults: the paper's.

    A compressed block is seen by the queries from its last token on: the paper does not say when, and what is seen
    earlier would hold what comes later.

    >>> nsa = NSA()
    >>> nsa.compressed(64), nsa.seen(torch.tensor([30, 31, 46, 47])).tolist()
    (3, [0, 1, 1, 2])

    Raises:
        ValueError: A number is no integer or too small, or the stride does not divide the two blocks.
    """

    length: int = 32
    """Tokens that are compressed into one key."""
    stride: int = 16
    """Tokens from one such block to the next."""
    block: int = 64
    """Tokens of a block that is selected."""
    count: int = 16
    """Blocks that a query selects, those that it always sees included."""
    first: int = 1
    """Blocks at the beginning that are always selected."""
    local: int = 2
    """Blocks up to the query's own that are always selected."""
    window: int = 512
    """Keys of the window, the query's own included."""

    def __post_init__(self) -> None:
        for name in ("length", "stride", "window"):
            object.__setattr__(self, name, require_integer("NSA", name, getattr(self, name), least=1))
        choice = self.choice
        for name in ("length", "block"):
            if (value := getattr(self, name)) % self.stride:
                raise ValueError(f"NSA: {name} is {value}; give a multiple of stride={self.stride}")
        object.__setattr__(self, "block", choice.size)

    @property
    def choice(self) -> BlockTopK:
        """How blocks are chosen by their importance."""
        return BlockTopK(self.block, self.count, self.first, self.local)

    def compressed(self, tokens: int) -> int:
        """How many whole blocks so many tokens have, that become one key each."""
        return max(0, (tokens - self.length) // self.stride + 1)

    def seen(self, positions: Int[Tensor, " Q"]) -> Int[Tensor, " Q"]:
        """How many compressed keys a query at each position sees: those of blocks that end at it or before."""
        return ((positions + 1 - self.length) // self.stride + 1).clamp(min=0)

    def importance(self, shares: Float[Tensor, "*B C"], keys: int) -> Float[Tensor, "*B M"]:
        """What each block to select gets of the compressed keys' shares (equation 9 of the paper).

        A stretch of `stride` tokens gets the share of every compressed block that it belongs to, and a block the sum
        of its stretches: a compressed block at its edge counts for the part that lies inside.

        >>> NSA().importance(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]), 128).tolist()
        [1222.0, 21000.0]
        """
        stretches = self.length // self.stride
        each = self.block // self.stride
        spread = pad(shares, (stretches - 1, self.choice.blocks(keys) * each - shares.shape[-1]))
        of_stretch = spread.unfold(-1, stretches, 1).sum(-1)
        return of_stretch.unflatten(-1, (-1, each)).sum(-1)

    @torch.no_grad()
    def select(
        self,
        q: Float[Tensor, "B H Q D"],
        compressed: Float[Tensor, "B G C D"],
        lse: Float[Tensor, "B H Q"],
        keys: int,
        *,
        scale: float | None = None,
    ) -> Selection:
        """The blocks for each query of each key head, by what its query heads together give to the compressed keys.

        Shares are made anew from the log-sum-exp, for a run of queries at a time. Of equal importance the older block
        wins: so it is while a query sees no compressed key. No gradient passes through.

        Args:
            lse: Log-sum-exp of the compression branch: of the scores of each query with the compressed keys it sees.
            keys: How many tokens there are; the last query stands at the last.
            scale: Factor on the scores; 1/sqrt(D) by default.
        """
        (batch, heads, queries, width), (groups, compressed_keys) = q.shape, compressed.shape[1:3]
        scale = width**-0.5 if scale is None else scale
        wide = torch.promote_types(q.dtype, torch.float32)
        positions = positions_of(queries, keys, q.device)
        seen = self.seen(positions)[:, None] > torch.arange(compressed_keys, device=q.device)  # [Q, C]
        q, lse = q.unflatten(1, (groups, -1)), lse.unflatten(1, (groups, -1)).to(wide)
        of_keys = compressed[:, :, None].to(wide).mT  # [B, G, 1, D, C]
        found = []
        for part in query_chunks(queries, batch * heads * max(compressed_keys, 1)):
            scores = (q[:, :, :, part].to(wide) @ of_keys) * scale
            shares = (scores - lse[:, :, :, part, None]).exp().masked_fill(~seen[part], 0.0).sum(2)  # [B, G, b, C]
            found.append(self.choice.choose(self.importance(shares, keys), positions[part]))
        return Selection(torch.cat(found, 2), block_size=self.block, causal=True)
