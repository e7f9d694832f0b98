"""`SinkAttention`: a learned logit a head that takes a share and gives nothing, as in gpt-oss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention import attend
from ..config.rotary import RotaryConfig
from ..patterns import Causal, Pattern, Window
from .grouped import GroupedHeads
from .layer_cache import LayerCache, Scores

ROTARY = RotaryConfig(theta=150_000.0)

GPT_OSS = Causal() & Window(128), Causal()
"""What gpt-oss's layers see, by turns, the first one the window."""


class SinkAttention(GroupedHeads):
    """Causal self-attention whose heads may attend to nothing: each has a logit that joins its softmax's denominator.

    With log-sum-exp `lse` of the scores alone, outputs are those without sinks times `sigmoid(lse - sink)`.
    Projections have biases, as gpt-oss's do. Defaults are a layer of it with a window; give `Causal()` for a full one.

    >>> layer = SinkAttention(64, 4, 2, head_width=16)
    >>> layer(torch.zeros(1, 100, 64)).shape
    torch.Size([1, 100, 64])

    Args:
        pattern: What a token sees: `GPT_OSS` has both kinds.

    Raises:
        ValueError: A size is no positive integer, or the key heads do not divide the heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        pattern: Pattern = GPT_OSS[0],
        *,
        head_width: int = 64,
        rotary: RotaryConfig | None = ROTARY,
    ):
        super().__init__(width, heads, key_heads, head_width, rotary=rotary, bias=True)
        self.pattern = pattern
        self.sinks = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Float[Tensor, "B N E"], *, cache: LayerCache | None = None) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself and, with `cache = LayerCache(layer.pattern)`, to the tokens of earlier calls."""
        q, k, v = self.project_at(x, 0 if cache is None else cache.seen)
        if cache is not None:
            return self.merge(cache.attend(q, k, v, Scores(sinks=self.sinks)))
        return self.merge(attend(q, k, v, self.pattern, sinks=self.sinks))
