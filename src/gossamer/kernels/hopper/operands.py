"""What the kernels' entry points take: tensors that belong together, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Queries [B, H, Q, D], keys [B, G, K, D] and values [B, G, K, Dv], all addressable."""

    q: Tensor
    k: Tensor
    v: Tensor


class Segment(NamedTuple):
    """Keys and values [B, G, C, D] in an order of which query i sees `start[i] … stop[i] - 1`, int32 [Q] each."""

    k: Tensor
    v: Tensor
    start: Tensor
    stop: Tensor


def segments_of(tensors: Sequence[Tensor]) -> list[Segment]:
    """The segments whose tensors stand one after the other."""
    count = len(Segment._fields)
    return [Segment(*tensors[at : at + count]) for at in range(0, len(tensors), count)]


class SeenKeys(NamedTuple):
    """Keys and values [B, G, C, D] of which key j is seen by queries `first[j] … last[j] - 1`, int32 [C] each."""

    k: Tensor
    v: Tensor
    first: Tensor
    last: Tensor


class Diagonal(NamedTuple):
    """A plain band: query i sees key j iff 0 <= i + shift - j < width."""

    shift: int
    width: int


class Results(NamedTuple):
    """What the forward gave and what came back to it, [B, heads, Q, …] each."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None

    def of(self, queries: Tensor | None) -> Results:
        """The same for some queries, or for all."""
        if queries is None:
            return self
        out, lse, grad_out = (x.index_select(2, queries) for x in (self.out, self.lse, self.grad_out))
        return Results(out, lse, grad_out, None if self.grad_lse is None else self.grad_lse.index_select(2, queries))
