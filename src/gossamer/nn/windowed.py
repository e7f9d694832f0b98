"""`WindowedAttention`: one layer's own causal window, dilated in a few heads (Longformer, arXiv 2004.05150)."""

from __future__ import annotations

import torch

from ..config import GPT2Config
from ..patterns.base import Pattern
from ..plan import plan
from .self_attention import SelfAttention
from .sparse import Intermediate


class WindowedAttention(SelfAttention):
    """Self-attention whose heads see the causal window of their layer, the last few with gaps between the keys.

    >>> config = GPT2Config(n_head=3, n_embed=24, n_layer=2, windows=(8, 16), dilations=(1, 2), dilated_heads=1)
    >>> WindowedAttention(config, layer=1).pattern(64)
    PerHead([(Causal() & Window(size=16), 2), (Causal() & Dilated(size=16, step=2), 1)])
    """

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__(
            config.n_head,
            config.n_embed,
            dropout=config.dropout,
            bias=config.bias,
            rotary=config.rotary,
        )
        self.layer = layer
        self.widen(config)

    def widen(self, config: GPT2Config) -> None:
        """Takes the layer's window from another configuration."""
        self.config = config
        self.seen = config.layer_pattern(self.layer)  # not the layer's number: equal layers share what is compiled

    def pattern(self, length: int) -> Pattern:
        return self.seen

    def intermediate(self, queries: int, keys: int, length: int, device: torch.device) -> Intermediate:
        """What a run over these lengths sees; the mask, of the first head, is n×n and is made here alone."""
        pattern = self.pattern(length)
        mask = pattern.for_head(0).dense_mask(queries, keys)
        return Intermediate(
            local_mask=torch.from_numpy(mask).to(device),
            global_mask=None,
            window_size=self.config.windows[self.layer],
            sparsity_ratio=1.0 - plan(pattern, queries, keys, self.n_head).share,
        )
