"""HySparse (arXiv 2602.03560): a full layer says which blocks matter, and lends its keys to sparse ones behind it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ..attention import attend
from ..config.rotary import HALVES, RotaryConfig
from ..indexed import attend_indexed
from ..patterns import Causal, Window
from ..selectors.block_topk import BlockTopK
from ..selectors.peaks import highest_share_selection
from ..selectors.selection import Selection
from .grouped import GroupedHeads
from .recent_cache import RecentCache
from .whole_cache import WholeCache


@dataclass(frozen=True, eq=False)
class SharedKeys:
    """What a full layer lends to the sparse layers behind it: its keys and values, and the blocks that it looked at."""

    k: Float[Tensor, "B G K D"]
    v: Float[Tensor, "B G K D"]
    selection: Selection


class HySparseFullAttention(GroupedHeads):
    """Causal full attention that also gives its keys, its values, and for each key head the blocks that it looked at.

    A block counts by the highest probability that any query head of its key head gives to one of its tokens. Size and
    number of blocks have no default, because what is public of the paper names none; nothing is chosen but by
    probability unless `choice` says so.

    >>> import torch
    >>> layer = HySparseFullAttention(64, 4, 2, BlockTopK(16, 3, local=0))
    >>> out, shared = layer(torch.randn(1, 100, 64))
    >>> out.shape, shared.selection.indices.shape
    (torch.Size([1, 100, 64]), torch.Size([1, 2, 100, 3]))

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        choice: BlockTopK,
        *,
        head_width: int | None = None,
        rotary: RotaryConfig | None = HALVES,
    ):
        super().__init__(width, heads, key_heads, head_width, rotary=rotary)
        self.choice = choice

    def forward(
        self, x: Float[Tensor, "B N E"], *, cache: WholeCache | None = None
    ) -> tuple[Float[Tensor, "B N E"], SharedKeys]:
        """Attention of `x` to itself and to the tokens of earlier calls with the same `cache`, and what it lends."""
        q, k, v = self.project_at(x, 0 if cache is None else cache.seen)
        if cache is not None:
            k, v = cache.extend([k, v])
        out, lse = attend(q, k, v, Causal(), return_lse=True)
        return self.merge(out), SharedKeys(k, v, highest_share_selection(q, k, lse, self.choice))


class HySparseAttention(GroupedHeads):
    """Causal attention to the blocks that a full layer chose, over that layer's keys and values, and to a window.

    One set of queries serves both; the window's keys and values are the layer's own. Each head weighs the two by gates
    of its own, sigmoids of the input. No gradient passes through the choice, but one into the lent keys and values.

    >>> import torch
    >>> full, layer = HySparseFullAttention(64, 4, 2, BlockTopK(16, 3, local=0)), HySparseAttention(64, 4, 2, window=32)
    >>> x = torch.randn(1, 100, 64)
    >>> layer(x, full(x)[1]).shape
    torch.Size([1, 100, 64])

    Args:
        window: Keys of the window, the query's own included; 128 by default, as in MiMo-V2-Flash (arXiv 2601.02780).

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        window: int = 128,
        *,
        head_width: int | None = None,
        rotary: RotaryConfig | None = HALVES,
    ):
        super().__init__(width, heads, key_heads, head_width, rotary=rotary)
        self.window = Window(window).size
        self.gate = nn.Linear(width, 2 * heads)

    def forward(
        self, x: Float[Tensor, "B N E"], shared: SharedKeys, *, cache: RecentCache | None = None
    ) -> Float[Tensor, "B N E"]:
        """Attention of `x` to what the full layer lends in the same step, and to the last tokens, held in `cache`."""
        q, k, v = self.project_at(x, 0 if cache is None else cache.seen)
        if cache is not None:
            k, v = cache.extend([k, v], self.window - 1)
        chosen = attend_indexed(q, shared.k, shared.v, shared.selection)
        near = attend(q, k, v, Causal() & Window(self.window))
        of_chosen, of_near = self.gate(x).sigmoid().unflatten(-1, (2, -1)).movedim(1, 3).unbind(1)  # [B, H, N]
        return self.merge(chosen * of_chosen[..., None] + near * of_near[..., None])
