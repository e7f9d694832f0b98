"""Queries that see much: they travel to the keys, and their parts of one softmax travel back and are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..indexed import merge_attention
from ..patterns.section import counted
from .course import Course, Part, RowsPart
from .exchange import exchanged, form_of
from .keys import as_long, put, taken
from .shards import Shards
from .softmax_part import Scores, SoftmaxPart


@dataclass(frozen=True, eq=False)
class Guests:
    """All the queries that see much, of every process, at the keys of this one."""

    part: Part
    rows: RowsPart
    softmax: SoftmaxPart
    shards: Shards

    @property
    def own(self) -> tuple[slice, ...]:
        """The part's heads, of [B, H, …]."""
        return slice(None), self.part.heads.queries

    @property
    def mine(self) -> tuple[tuple[int, int, int], ...]:
        """The runs of this shard's own."""
        return self.rows.of_ranks[self.shards.rank]

    @property
    def counts(self) -> list[int]:
        """How many each process has."""
        return [counted(runs) for runs in self.rows.of_ranks]

    def gathered(self, *own: Tensor) -> list[Tensor]:
        """These tensors [B, h, n, D] of the own queries, and the same of all others: [B, h, all, D] each."""
        awaited = [[(as_long(x, count), x.dtype) for x in own] for count in self.counts]
        come = exchanged([own] * self.shards.count, awaited, self.shards, own[0].device)
        return [torch.cat(some, dim=2) for some in zip(*come, strict=True)]

    def returned(self, *every: Tensor) -> list[list[Tensor]]:
        """What each process made of the own queries, of tensors [B, h, all, D] about all of them."""
        pieces = [x.split(self.counts, dim=2) for x in every]
        parcels = list(zip(*pieces, strict=True))
        forms = [form_of(x) for x in parcels[self.shards.rank]]
        return exchanged(parcels, [forms] * self.shards.count, self.shards, every[0].device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
        """Writes what these queries see over all shards to `out` and `lse`, in place."""
        (queries,) = self.gathered(taken(q[self.own], self.mine))
        some, of_some = self.softmax.forward(queries, *self._keys(k, v))
        parts = [(x, norm[..., 0]) for x, norm in self.returned(some, of_some[..., None])]
        merged, norms = merge_attention(parts)
        put(out[self.own], self.mine, merged)
        put(lse[self.own], self.mine, norms)

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient of the own queries, of this shard's keys, of its values)."""
        own = [taken(x[self.own], self.mine) for x in (grad_out, q, out, lse[..., None])]
        grads, queries, outs, norms = self.gathered(*own)
        dq, dk, dv = self.softmax.backward(grads, queries, *self._keys(k, v), outs, norms[..., 0].contiguous())
        parts = [x for (x,) in self.returned(dq)]
        wide = torch.promote_types(dq.dtype, torch.float32)
        return torch.stack(parts).sum(0, dtype=wide).to(dq.dtype), dk, dv

    def add(self, of_rows: Tensor, dq: Tensor, of_keys: Sequence[Tensor], dkv: Sequence[Tensor]) -> None:
        """Adds these gradients to those of all queries, keys and values, in place."""
        put(dq[self.own], self.mine, of_rows)  # nothing else was made of these queries
        for x, some in zip(dkv, of_keys, strict=True):
            x[:, self.part.heads.keys] += some

    def _keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k[:, self.part.heads.keys], v[:, self.part.heads.keys]


def guests_of(course: Course, shards: Shards, scores: Scores, device: torch.device) -> list[Guests]:
    """For each part of the heads that has such queries, in some process."""
    return [
        Guests(part, part.rows, SoftmaxPart.of(part.rows.text, scores, device), shards)
        for part in course.parts
        if part.rows is not None
    ]
