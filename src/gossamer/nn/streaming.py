"""Attention to a window and to the first tokens, at positions within the cache (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention import attend
from ..config.rotary import HALVES, RotaryConfig
from ..indexed import merge_attention
from ..patterns import Causal, Window
from ..runs import attend_runs
from .grouped import GroupedHeads
from .heads import require_sizes
from .positions import rotated
from .recent_cache import RecentCache


class StreamingCache:
    """What `StreamingAttention` holds: the first tokens and the last ones, however long the stream."""

    def __init__(self) -> None:
        self.first, self.window = RecentCache(), RecentCache()

    @property
    def seen(self) -> int:
        """Tokens of a sequence so far."""
        return self.first.seen + self.window.seen

    @property
    def nbytes(self) -> int:
        """Memory that is taken."""
        return self.first.nbytes + self.window.nbytes

    def pick(self, order: Tensor) -> None:
        """Goes on with the sequences `order` [B'] of those held, as beam search asks."""
        self.first.pick(order)
        self.window.pick(order)


class StreamingAttention(GroupedHeads):
    """Causal self-attention to the last `window` tokens and the first `sinks`, at their places in a cache of these.

    Positions are those of `presets.streaming`'s tokens among each other, and not in the text: no distance is ever
    above `window + sinks`, so a model meets none that training did not show. Up to that length nothing differs from a
    window and sinks at true positions. Within the window the distances are the true ones, and to the first tokens a
    query stands at `window + sinks - 1` at most: these are two attentions at fixed positions, joined by their
    log-sum-exps, and no held key is ever turned again.

    >>> layer = StreamingAttention(64, 4, window=16)
    >>> cache, x = StreamingCache(), torch.randn(1, 100, 64)
    >>> in_pieces = torch.cat([layer(piece, cache=cache) for piece in x.split(9, dim=1)], dim=1)
    >>> torch.allclose(in_pieces, layer(x), atol=1e-5)
    True

    Args:
        window: The last tokens that are seen, the query's own included.
        sinks: The first tokens, which stay; 4 in the paper.

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int | None = None,
        *,
        window: int,
        sinks: int = 4,
        rotary: RotaryConfig = HALVES,
    ):
        super().__init__(width, heads, key_heads or heads, rotary=None)
        require_sizes("StreamingAttention", {"window": window, "sinks": sinks})
        self.window, self.sinks, self.turns = window, sinks, rotary

    def forward(self, x: Float[Tensor, "B N E"], *, cache: StreamingCache | None = None) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself and to the tokens of earlier calls with the same `cache`."""
        past = 0 if cache is None else cache.seen
        at = torch.arange(past, past + x.shape[1], device=x.device)
        q, k, v = self.project(x)
        k = rotated(k, at, self.turns)
        new = max(self.sinks - past, 0)  # as many of these tokens, or all of them, are first ones
        first_k, first_v, near_k, near_v = k[:, :, :new], v[:, :, :new], k[:, :, new:], v[:, :, new:]
        if cache is not None:
            first_k, first_v = cache.first.extend([first_k, first_v], self.sinks)
            near_k, near_v = cache.window.extend([near_k, near_v], self.window - 1)
        place = at.clamp(max=self.window + self.sinks - 1)
        stop = (at + 1).clamp(max=first_k.shape[2]).to(torch.int32)[None]
        placed, start = rotated(q, place, self.turns), torch.zeros_like(stop)
        of_first = attend_runs(placed, first_k, first_v, start, stop, return_lse=True)
        pattern = Causal() & Window(self.window)
        of_near = attend(rotated(q, at, self.turns), near_k, near_v, pattern, return_lse=True)
        return self.merge(merge_attention([of_first, of_near])[0])
