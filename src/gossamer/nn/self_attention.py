"""What every self-attention module shares: projections, cache and the way in and out."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention import attend
from ..config import RotaryConfig
from ..patterns.base import Pattern
from .heads import merged, split
from .positions import positions, rotated
from .surroundings import Surroundings


class SelfAttention(nn.Module):
    """Projects, attends by the pattern of a subclass, and projects back.

    Parameters are GPT-2's: `c_attn` makes queries, keys and values side by side, `c_proj` joins the heads, so a
    state dict fits the dense and the sparse module alike. With `rotary`, queries and keys are turned by their
    positions, which take no parameters. `n_kv_head` heads of keys and values may each serve several of queries.
    """

    def __init__(
        self,
        n_head: int,
        width: int,
        *,
        n_kv_head: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: RotaryConfig | None = None,
    ):
        super().__init__()
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        if width < 1 or width % n_head:
            raise ValueError(f"{type(self).__name__}: width is {width}; give a multiple of the {n_head} heads")
        if n_kv_head < 1 or n_head % n_kv_head:
            raise ValueError(f"{type(self).__name__}: n_kv_head is {n_kv_head}; give a divisor of the {n_head} heads")
        self.n_head, self.n_kv_head = n_head, n_kv_head
        self.dropout = dropout
        self.rotary = rotary
        self.c_attn = nn.Linear(width, width + 2 * (width // n_head) * n_kv_head, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        return_intermediate: bool = False,
        *,
        cache: Surroundings | None = None,
        layer: int = 0,
        planned_length: int | None = None,
    ) -> Float[Tensor, "B N E"] | tuple[Float[Tensor, "B N E"], object]:
        """Attention of `x` to itself and, with a `cache`, to the tokens held there.

        Args:
            return_intermediate: Return (output, what this layer looked at; None for a dense layer).
            cache: Holds what is read again of earlier calls; `x` goes on from there, as `layer`.
            planned_length: How long the sequence may become; by default the cache's capacity, or the input's length.
        """
        q, k, v = self.project(x, cache)
        length = planned_length or (x.shape[1] if cache is None else cache.capacity)
        if cache is None:
            mixed = self.mix(q, k, v, length)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = cache.attend(layer, q, k, v, self.pattern(length), dropout=dropout)
        out = self.merge(mixed)
        if not return_intermediate:
            return out
        past = 0 if cache is None else cache.length
        return out, self.intermediate(q.shape[2], past + k.shape[2], length, x.device)

    def project(self, x: Float[Tensor, "B N E"], cache: Surroundings | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, N, D], keys and values [B, G, N, D] of tokens that go on from those in `cache`."""
        made = split(self.c_attn(x), self.n_head + 2 * self.n_kv_head)
        q, k, v = made.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        if self.rotary is not None:
            at = positions(x.shape[1], cache, x.device)
            q, k = rotated(q, at, self.rotary), rotated(k, at, self.rotary)
        return q, k, v

    def merge(self, out: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N E"]:
        """Joins the heads and projects back."""
        return self.c_proj(merged(out))

    @abstractmethod
    def pattern(self, length: int) -> Pattern:
        """Who may see whom, in a sequence that may become `length` tokens long."""

    def mix(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G N D"],
        v: Float[Tensor, "B G N D"],
        length: int,
    ) -> Float[Tensor, "B H N D"]:
        """Attention of a whole sequence to itself, which may become `length` tokens long."""
        return attend(q, k, v, self.pattern(length), dropout=self.dropout if self.training else 0.0)

    def intermediate(self, queries: int, keys: int, length: int, device: torch.device) -> object:
        """What a run over these lengths looked at; None where every earlier key is seen."""
        return None
