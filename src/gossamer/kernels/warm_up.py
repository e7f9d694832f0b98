"""What an index learns from attention to all keys: divergence of its softmax from where all heads look together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..selectors.topk import seen_from


@dataclass(frozen=True, eq=False)
class Lesson:
    """Attention, which teaches, and an index, which learns. A query sees the keys up to its position."""

    q: Tensor
    """[B, H, Q, D]"""
    k: Tensor
    """[B, G, K, D]"""
    lse: Tensor
    """[B, H, Q] in float32 or float64."""
    index_q: Tensor
    """[B, J, Q, d]"""
    index_k: Tensor
    """[B, K, d]"""
    weights: Tensor
    """[B, Q, J] in float32 or float64."""
    within: Tensor | None
    """int32 [B, 2], as for `attend`."""
    scale: float
    relu: bool

    @property
    def wide(self) -> torch.dtype:
        """What sums and exponentials are kept in."""
        return self.weights.dtype

    def hidden(self, rows: slice, keys: slice) -> Tensor:
        """bool [B or 1, b, n]: what stands behind a query, or where one of both is in no sequence."""
        at = self._positions[rows, None]
        key = torch.arange(keys.start, keys.stop, device=self.q.device)
        if self.within is None:
            return (key > at)[None]
        first, end = self.within[:, :1, None], self.within[:, 1:, None]
        return (key > at) | (key < first) | (at < first) | (at >= end)

    @property
    def visible(self) -> Tensor:
        """int32 [B, Q]: behind so many of the first keys a query sees nothing."""
        at, batch = self._positions, self.q.shape[0]
        seen = seen_from(at, self.k.shape[2]).expand(batch, -1)
        if self.within is None:
            return seen
        return torch.where((at >= self.within[:, :1]) & (at < self.within[:, 1:]), seen, 0)

    @property
    def _positions(self) -> Tensor:
        return torch.arange(self.k.shape[2] - self.q.shape[2], self.k.shape[2], device=self.q.device)


class Divergence(NamedTuple):
    """Of each query, and what the backward needs to make it again."""

    rows: Tensor
    """[B, Q]: 0 where a query sees nothing, or looks at nothing."""
    mass: Tensor
    """[B, Q]: probabilities of all heads and keys together."""
    index_lse: Tensor
    """[B, Q]: log-sum-exp of the index's scores."""


class Road(Protocol):
    """One way to compute it, forward and backward."""

    name: str

    def refuses(self, lesson: Lesson) -> str | None:
        """Why it cannot run, or None where it can."""
        ...

    def forward(self, lesson: Lesson) -> Divergence:
        """The divergence of every query."""
        ...

    def backward(self, lesson: Lesson, found: Divergence, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the index's queries, keys and weights, of a gradient [B, Q] of the divergences."""
        ...
