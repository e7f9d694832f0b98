"""What a road for hashed attention is asked to compute: chunks of sorted tokens, round by round, joined exactly.

Every vector is a query, and a key once it is divided by its length. A pair's score is the product of both, times the
scale. A token meets itself once, in the first round, and its score then is `ALONE`, which counts only where it sees
nobody else in any round. Others that are met in several rounds count as often, or, where the rounds carry places,
once: each of n meetings is worth 1/n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..selectors.rounds import Chunks, SortedRounds

ALONE = -1e5
"""A token's score with itself. Scores are never of half precision, where it would be minus infinity."""


@dataclass(frozen=True)
class Scores:
    """From vectors to scores."""

    chunks: Chunks
    scale: float
    epsilon: float
    """Times the width, it is added to a key's squared length."""

    def units(self, x: Tensor) -> Tensor:
        """[B, H, N]: what turns each vector into a key, in float32 or float64."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
        return torch.rsqrt(length.square_().add_(x.shape[-1] * self.epsilon))


class Forwarded(NamedTuple):
    """What the backward needs of the forward."""

    x: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


class Road(Protocol):
    """One way to compute hashed attention, forward and backward."""

    name: str

    def refuses(self, x: Tensor, v: Tensor) -> str | None:
        """Why it cannot run on such vectors and values, or None where it can."""
        ...

    def forward(self, x: Tensor, v: Tensor, rounds: SortedRounds, scores: Scores) -> tuple[Tensor, Tensor]:
        """(out [B, H, N, Dv] in the dtype of `v`, natural log-sum-exp [B, H, N] in float32 or float64)."""
        ...

    def backward(
        self, saved: Forwarded, grad_out: Tensor, grad_lse: Tensor | None, rounds: SortedRounds, scores: Scores
    ) -> tuple[Tensor, Tensor]:
        """Gradients of `x` and `v`. None passes through the order."""
        ...
