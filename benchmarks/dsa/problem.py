"""The shapes of DeepSeek-V3.2's attention and of heads that share keys, and random choices of keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, VALUE = 576, 512
DENSE_WIDTH, DENSE_VALUE = 192, 128
"""Of a head where latents are expanded to keys and values, as dense attention has them."""
SCALE = DENSE_WIDTH**-0.5

AT_ONCE = 512
"""Queries whose choice is drawn together."""


@dataclass(frozen=True)
class Grouped:
    """Query heads that share key heads, and choose blocks with them."""

    heads: int = 32
    key_heads: int = 8
    width: int = 128
    block: int = 64
    chosen: int = 16

    @property
    def repeats(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.key_heads


@dataclass(frozen=True)
class Problem:
    """One layer's attention."""

    tokens: int
    device: torch.device
    heads: int = 128
    chosen: int = 2048
    index_heads: int = 64
    index_width: int = 128
    dtype: torch.dtype = torch.bfloat16
    repeats: int = 3
    grouped: Grouped = Grouped()

    @property
    def pairs(self) -> int:
        """Pairs of a query and a chosen key, of one head."""
        few = min(self.chosen, self.tokens)
        return few * (few + 1) // 2 + (self.tokens - few) * few

    @property
    def all_pairs(self) -> int:
        """Pairs of a query and a key that it may see."""
        return self.tokens * (self.tokens + 1) // 2

    def drawn(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(1, *shape, device=self.device, dtype=self.dtype)

    def random_choice(self, seed: int = 0) -> Tensor:
        """int32 [1, tokens, chosen]: for each query as many keys that it may see, ascending; -1 behind the last.

        Neighbours share no more than chance has it: the worst that caches can meet.
        """
        draw = torch.Generator(self.device).manual_seed(seed)
        keys = torch.arange(self.tokens, device=self.device)
        found = torch.full((self.tokens, self.chosen), -1, dtype=torch.int32, device=self.device)
        for first in range(0, self.tokens, AT_ONCE):
            here = keys[first : first + AT_ONCE, None]
            rank = torch.rand(len(here), self.tokens, device=self.device, generator=draw).masked_fill_(keys > here, -1)
            value, key = rank.topk(min(self.chosen, self.tokens), -1)
            key = key.masked_fill(value < 0, self.tokens).sort(-1).values
            found[first : first + AT_ONCE, : key.shape[1]] = key.masked_fill(key == self.tokens, -1)
        return found[None]

    def some_queries(self) -> list[int]:
        """Those that are judged."""
        return sorted({0, 1, self.tokens // 3, self.tokens // 2, self.tokens - 1})
