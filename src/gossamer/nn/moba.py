"""`MoBAAttention`: attention to the blocks whose mean key a query points to (Lu et al. 2025, arXiv 2502.13189)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.rotary import HALVES, RotaryConfig
from ..indexed import attend_indexed
from ..selectors.block_topk import BlockTopK
from ..selectors.moba import moba_selection
from ..selectors.selection import Selection
from .grouped import GroupedHeads
from .whole_cache import WholeCache


class MoBAAttention(GroupedHeads):
    """Causal self-attention in which each query of each head sees its own block and `count - 1` past ones.

    Parameters are those of full attention, so weights go from one to the other; with as many blocks as there are it is
    full attention. The paper keeps that in the last layers and for the last tenth of training: raise `count` there.

    >>> layer = MoBAAttention(64, 4, key_heads=2, block=16, count=3)
    >>> layer(torch.zeros(1, 100, 64)).shape
    torch.Size([1, 100, 64])

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int | None = None,
        *,
        block: int = 512,
        count: int = 3,
        head_width: int | None = None,
        rotary: RotaryConfig | None = HALVES,
    ):
        super().__init__(width, heads, key_heads or heads, head_width, rotary=rotary)
        choice = BlockTopK(block, count)
        self.block, self.count = choice.size, choice.count

    def forward(self, x: Float[Tensor, "B N E"], *, cache: WholeCache | None = None) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself and to the tokens of earlier calls with the same `cache`, which holds them all."""
        q, k, v = self.project_at(x, 0 if cache is None else cache.seen)
        if cache is not None:
            k, v = cache.extend([k, v])
        return self.merge(attend_by_query_head(q, k, v, moba_selection(q, k, self.block, self.count)))


def attend_by_query_head(
    q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B G K D"], v: Float[Tensor, "B G K Dv"], selection: Selection
) -> Float[Tensor, "B H Q Dv"]:
    """`attend_indexed` with a choice for each query head, also where several share a key head: [B, H, Q, n].

    One call for the first query head of each key head, one for the second, and so on: no key is copied.
    """
    groups = k.shape[1]
    every = q.unflatten(1, (groups, -1)), selection.indices.unflatten(1, (groups, -1))
    outs = [
        attend_indexed(of_q, k, v, Selection(chosen, selection.block_size, causal=selection.causal))
        for of_q, chosen in zip(*(x.unbind(2) for x in every), strict=True)
    ]
    return torch.stack(outs, 2).flatten(1, 2)
