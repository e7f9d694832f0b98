"""What a road to the best keys is asked to compute: scores of a few queries, and the choice among them.

The scores of a part of the queries are written out and read again: a part is small enough that memory grows with the
keys and not with the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

ROW = 16
"""Scores that rows lie apart by multiples of, so that they are read in vectors."""


@dataclass(frozen=True, eq=False)
class Indexed:
    """Queries, keys and weights of an index."""

    q: Tensor
    """[B, J, Q, D]"""
    k: Tensor
    """[B, K, D]"""
    weights: Tensor
    """[B, Q, J] in float32 or float64. Where queries are quantized, their scales are in here."""
    visible: Tensor
    """int32 [B, Q], between 0 and K: a query chooses among so many of the first keys."""
    relu: bool
    key_scales: Tensor | None = None
    """[B, K]: what scores are multiplied with in the end, where keys are quantized."""

    def part(self, rows: slice, queries: slice, keys: int) -> Indexed:
        """Some sequences and queries of it, and the first keys."""
        return replace(
            self,
            q=self.q[rows, :, queries],
            k=self.k[rows, :keys],
            weights=self.weights[rows, queries],
            visible=self.visible[rows, queries].clamp(max=keys),
            key_scales=None if self.key_scales is None else self.key_scales[rows, :keys],
        )


def room_for(index: Indexed) -> Tensor:
    """float32 [B, Q, K], not yet written: every row begins, and ends in memory, where a vector does."""
    (batch, _, queries, _), keys = index.q.shape, index.k.shape[1]
    return index.weights.new_empty(batch, queries, -(-keys // ROW) * ROW, dtype=torch.float32)[:, :, :keys]


class Scorer(Protocol):
    """One way to compute scores."""

    most_scores: int
    """How many of them it is asked for at a time, if one query has not more."""

    def together(self, index: Indexed) -> int:
        """Queries that it scores best, or any multiple: then no part of the device is done before the others."""
        ...

    def refuses(self, index: Indexed) -> str | None:
        """Why it cannot score such tensors, or None where it can."""
        ...

    def score(self, index: Indexed) -> Tensor:
        """[B, Q, K], a query's scores side by side; from key `visible` on they are anything."""
        ...


class Selector(Protocol):
    """One way to choose."""

    def select(self, scores: Tensor, visible: Tensor, count: int) -> Tensor:
        """int32 [R, count]: where the largest of the first `visible` [R] of scores [R, K] stand, in ascending order.

        Of equal ones the first are taken, NaN and minus infinity never; -1 stands behind the last.
        """
        ...


class Road(NamedTuple):
    """Scores by one, the choice by the other."""

    name: str
    scorer: Scorer
    selector: Selector
