"""A part of a softmax: attention over some of its keys, whose backward knows the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.attend import attend_backward_eagerly, attend_eagerly


class Scores(NamedTuple):
    """What becomes of scores; the names and the meaning are those of `attend`."""

    scale: float | None
    softcap: float | None
    dropout: float
    backend: str | None

    def settled(self, width: int) -> tuple[float, float, float, str | None]:
        """(scale, softcap, dropout, backend) as operators take them, for queries of `width` numbers."""
        scale, softcap, dropout, backend = self
        return width**-0.5 if scale is None else float(scale), float(softcap or 0.0), float(dropout), backend


@dataclass(frozen=True, eq=False)
class SoftmaxPart:
    """Some queries and some keys, by a pattern's text; dropout is drawn once for forward and backward."""

    text: str
    scores: Scores
    seed: Tensor | None

    @classmethod
    def of(cls, text: str, scores: Scores, device: torch.device) -> SoftmaxPart:
        """The part, with a seed of its own where pairs are dropped."""
        seed = torch.randint(2**62, (1,), device=device) if scores.dropout else None
        return cls(text, scores, seed)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of this part alone."""
        return attend_eagerly(
            q, k, v, None, self.seed, None, None, self.text, *self.scores.settled(q.shape[-1])
        )  # fmt: skip

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part's share of the gradients of q, k and v: `out` and `lse` are those of the whole softmax."""
        dq, dk, dv, _ = attend_backward_eagerly(
            grad_out, None, q, k, v, out, lse, None, self.seed, None, None, self.text, *self.scores.settled(q.shape[-1])
        )
        return dq, dk, dv
