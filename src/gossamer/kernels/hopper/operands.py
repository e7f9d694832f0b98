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


class Diagonal(NamedTuple):
    """A plain band: query i sees key j iff 0 <= i + shift - j < width."""

    shift: int
    width: int

    @property
    def turned(self) -> Diagonal:
        """The same band with keys in the place of queries."""
        return Diagonal(self.width - 1 - self.shift, self.width)


class Segment(NamedTuple):
    """Keys and values [B, G, C, D] in an order of which query i sees `start[i] … stop[i] - 1`, int32 [Q] or [B, Q].

    `diagonal` says the same where it is a plain band: then no kernel has to read the tables.
    """

    k: Tensor
    v: Tensor
    start: Tensor
    stop: Tensor
    diagonal: Diagonal | None = None


SEGMENT_TENSORS = 4


def tensors_of(segments: Sequence[Segment]) -> list[Tensor]:
    """The tensors of all segments, one after the other."""
    return [x for each in segments for x in each[:SEGMENT_TENSORS]]


def segments_of(tensors: Sequence[Tensor], diagonal: Diagonal | None) -> list[Segment]:
    """The segments whose tensors stand one after the other; the first may be a plain band."""
    one, *others = (tensors[at : at + SEGMENT_TENSORS] for at in range(0, len(tensors), SEGMENT_TENSORS))
    return [Segment(*one, diagonal), *(Segment(*each) for each in others)]


class SeenKeys(NamedTuple):
    """Keys and values [B, G, C, D] of which key j is seen by queries `first[j] … last[j] - 1`, int32 [C] or [B, C].

    `diagonal` says the same where keys see queries in a plain band.
    """

    k: Tensor
    v: Tensor
    first: Tensor
    last: Tensor
    diagonal: Diagonal | None = None


class Asking(NamedTuple):
    """Queries [B, H, Q, D], their outputs' gradients [B, H, Q, Dv], their auxiliary rows, bfloat16 [B, H, Q, 16]."""

    q: Tensor
    grad_out: Tensor
    aux: Tensor


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
