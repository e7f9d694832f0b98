"""A batch whose sequences end at lengths of their own, taken sequence by sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ...plan import Plan, resized


@dataclass(frozen=True)
class Sequence:
    """One sequence of a batch: which queries of it see anything, and the keys before its length."""

    number: int
    queries: slice
    keys: slice
    plan: Plan

    def queries_of(self, x: Tensor) -> Tensor:
        """The sequence's part of [B, H, Q, …], a view."""
        return x[self.number : self.number + 1, :, self.queries]

    def keys_of(self, x: Tensor) -> Tensor:
        """The sequence's part of [B, G, K, …], a view."""
        return x[self.number : self.number + 1, :, self.keys]


def sequences(plan: Plan, lengths: Tensor) -> Iterator[Sequence]:
    """Each sequence: its last query stands at its last key, and queries before its first key see nothing."""
    for number, length in enumerate(lengths.clamp(0, plan.keys).tolist()):
        queries = min(plan.queries, length)
        yield Sequence(number, slice(plan.queries - queries, None), slice(length), resized(plan, queries, length))
