"""`LSHAttention`: the Reformer's hashed self-attention as a module (Kitaev et al. 2020, arXiv 2001.04451)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from ..hashed import attend_hashed, draw_buckets
from ..patterns.base import require_integer
from ..selectors.lsh import LSH
from .heads import merged, split


class LSHAttention(nn.Module):
    """Self-attention in which a token sees those whose vectors point where its own does.

    One projection makes the vectors that are queries and, at length one, keys. The hash is drawn anew at every call;
    `draw` gives one to repeat a call with. Any length will do. A sequence that fits one chunk is not hashed, and is
    attended to in full, if `lsh` lets a token see other buckets or has but one.

    >>> layer = LSHAttention(64, 4, LSH.paper(rounds=2, chunk=16))
    >>> layer(torch.zeros(1, 50, 64)).shape
    torch.Size([1, 50, 64])
    >>> layer.rounds = 8  # more rounds find more of what full attention would look at

    Raises:
        ValueError: A size is no positive integer, or `width` is no multiple of the heads and `head_width` is None.
    """

    def __init__(self, width: int, heads: int, lsh: LSH, *, head_width: int | None = None):
        super().__init__()
        for name, value in {"width": width, "heads": heads, "head_width": head_width or 1}.items():
            require_integer(type(self).__name__, name, value, least=1)
        if head_width is None and width % heads:
            raise ValueError(f"LSHAttention: width is {width}; give a multiple of the {heads} heads, or head_width")
        self.heads, self.lsh = heads, lsh
        self.head_width = head_width or width // heads
        inner = heads * self.head_width
        self.query_key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.dense = nn.Linear(inner, width, bias=False)

    @property
    def rounds(self) -> int:
        """Rounds of hashing. They may be changed at any time, and more of them than in training may help."""
        return self.lsh.rounds

    @rounds.setter
    def rounds(self, rounds: int) -> None:
        self.lsh = replace(self.lsh, rounds=rounds)

    @torch.no_grad()
    def draw(self, x: Float[Tensor, "B N E"]) -> Int64[Tensor, "B H R N"]:
        """The buckets that the tokens of `x` fall into by a hash drawn now; `forward` takes them as `buckets`."""
        return draw_buckets(split(self.query_key(x), self.heads), self.lsh)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        *,
        within: Int32[Tensor, "B 2"] | None = None,
        buckets: Int64[Tensor, "B H R N"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attention of `x` to itself.

        Args:
            within: Sequence b is its tokens `within[b, 0] … within[b, 1] - 1` alone; what lies outside is not seen
                and comes out as zeros.
            buckets: From `draw`, or of a Hugging Face Reformer, which counts on from round to round; by default the
                hash is drawn anew.
        """
        vectors, values = split(self.query_key(x), self.heads), split(self.value(x), self.heads)
        most = self.lsh.most(x.shape[1])
        if self.lsh.is_full(x.shape[1]):
            buckets, most = self._one_bucket(x), 1
        elif buckets is None:
            buckets = draw_buckets(vectors, self.lsh)
        else:
            most = buckets.shape[2] * (most + 1)
        out = attend_hashed(vectors, values, buckets, self.lsh, within=within, most=most)
        return self.dense(merged(out))

    def _one_bucket(self, x: Float[Tensor, "B N E"]) -> Int64[Tensor, "B H R N"]:
        return x.new_zeros(x.shape[0], self.heads, 1, x.shape[1], dtype=torch.int64)
