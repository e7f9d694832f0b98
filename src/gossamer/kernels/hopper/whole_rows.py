"""Queries that see every key, apart from all others: no mask, no table of theirs, and no gathered key.

What other passes say of such queries is replaced, not joined: their softmax is all here. In the backward the other
passes get a log-sum-exp of minus infinity for them, with which a query is absent, and the kernel that finishes the
gradients of keys takes them as a second run of queries, which every key sees.

They are few and the keys are many: a copy of them for each share of the keys gives every multiprocessor something to
do, and the parts are joined by their log-sum-exps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ...plan import Rows
from ..captured import refuse_capture
from ..spans import Span
from . import row_shares, sweep_backward, sweep_forward
from .configs import ROWS, team_of, tile_width
from .operands import Asking, Inputs, Results, Segment
from .ring import AUX
from .sweep import shares_of


@dataclass(frozen=True)
class Shares:
    """The queries once for each share of the keys, every copy padded to whole tiles of a team."""

    queries: Tensor
    """int64 [count · rows], indices of the query axis."""
    start: Tensor
    """int32 [count · rows], what each sees: a share, or nothing where a whole tile is padding."""
    stop: Tensor
    count: int
    takers: int
    """Warpgroups that take turns at a share: so many parts it gives. 1 where none do."""

    @property
    def parts(self) -> int:
        """Parts that become one."""
        return self.count * self.takers

    def segments(self, inputs: Inputs) -> list[Segment]:
        """All keys as they stand, and what each of the queries sees of them."""
        return [Segment(inputs.k, inputs.v, self.start, self.stop)]


@dataclass(frozen=True)
class Apart:
    """The queries of all shares, what the forward gave for them, and what came back."""

    queries: Tensor
    """int64 [m], each once."""
    shares: Shares
    q: Tensor
    results: Results

    def backward(self, inputs: Inputs, dq: Tensor, *, scale: float) -> Asking:
        """Writes the queries' rows of `dq`; returns what the gradients of keys need of them, [B, G, repeats · m, …]."""
        shares, q, (batch, heads, length, width) = self.shares, self.q, self.q.shape
        parts = q.new_empty(batch, heads, length * shares.takers, width)
        aux = q.new_empty(batch, heads, length, AUX.value, dtype=torch.bfloat16)
        given = q, shares.segments(inputs), self.results, parts, aux
        sweep_backward.backward_queries(*given, scale=scale, in_turn=shares.takers > 1)
        row_shares.write_sums(parts, dq, self.queries, shares=shares.parts)
        return Asking(*(self._of_key_heads(x, inputs.k.shape[1]) for x in (q, self.results.grad_out, aux)))

    def _of_key_heads(self, x: Tensor, key_heads: int) -> Tensor:
        """Of copies that all say the same the first; rows of heads that share a key head lie together."""
        x = x[:, :, : len(self.queries)]
        return x if x.shape[1] == key_heads else x.unflatten(1, (key_heads, -1)).flatten(2, 3)


@dataclass(frozen=True, eq=False)
class WholeRows:
    """Queries that see all of so many keys."""

    queries: Tensor
    """int64 [m], ascending indices of the query axis."""
    absent: Tensor
    """bool [Q], the same as a mask."""
    keys: int
    _shares: dict[tuple[int, int, int], Shares] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, found: tuple[Span, ...], length: int) -> Self | None:
        """Of `length` queries those of the disjoint spans' rows; None where one of them misses a key. Reads tables."""
        asked = [span.term.queries for span in found if isinstance(span.term, Rows)]
        if not asked:
            return None
        queries = np.unique(np.concatenate(asked))
        seen = np.zeros(length, np.int64)
        for span in found:
            order = slice(None) if span.queries is None else span.queries.cpu().numpy()
            seen[order] += (span.stop - span.start).cpu().numpy()
        keys = found[0].all_keys
        if not len(queries) or (seen[queries] != keys).any():
            return None
        absent = np.zeros(length, bool)
        absent[queries] = True
        return cls(*(torch.from_numpy(x).to(found[0].start.device) for x in (queries, absent)), keys)

    def forward(self, inputs: Inputs, sinks: Tensor | None, out: Tensor, lse: Tensor, *, scale: float) -> None:
        """Writes the queries' rows of `out` and `lse`."""
        shares = self._shares_for(inputs, out.shape[-1])
        q, in_turn = row_shares.gathered(inputs.q, shares.queries), shares.takers > 1
        batch, heads, length, _ = q.shape
        parts = out.new_empty(batch, heads, length * shares.takers, out.shape[-1])
        part_lse = lse.new_empty(parts.shape[:-1])
        sweep_forward.forward(q, shares.segments(inputs), parts, part_lse, None, scale=scale, in_turn=in_turn)
        row_shares.write_joined(parts, part_lse, sinks, out, lse, self.queries, shares=shares.parts)

    def taken_from(self, inputs: Inputs, results: Results) -> tuple[Apart, Results]:
        """(what the backward needs of these queries, the results as the other passes see them: without these)."""
        shares = self._shares_for(inputs, results.out.shape[-1])
        q, copies, lse = row_shares.taken(inputs.q, results, shares.queries, self.absent)
        return Apart(self.queries, shares, q, copies), results._replace(lse=lse)

    def _shares_for(self, inputs: Inputs, value_width: int) -> Shares:
        """As many shares as keep the GPU busy; kept, for tables cannot be made while a graph is captured."""
        q, k, _ = inputs
        batch, heads, _, width = q.shape
        team = team_of(tile_width(width), tile_width(value_width), heads // k.shape[1])
        takers = team.consumers if len(self.queries) <= ROWS and not team.by_heads else 1
        height = ROWS if takers > 1 else team.rows
        blocks = -(-len(self.queries) // height)
        items = batch * heads // team.heads_together * blocks
        kind = shares_of(items, -(-self.keys // ROWS) // takers, q.device), blocks * height, takers
        if kind not in self._shares:
            self._shares[kind] = self._made(*kind)
        return self._shares[kind]

    def _made(self, count: int, length: int, takers: int) -> Shares:
        """Copies of `length` rows. Neither end of what they see ever falls from one to the next.

        Made on the CPU, so that they are there when this returns, on whatever stream they are read.
        """
        device, wanted = self.queries.device, len(self.queries)
        refuse_capture(device)
        row = torch.arange(length)
        share = ROWS * -(-self.keys // (count * ROWS))
        first = (share * torch.arange(count)[:, None]).clamp(max=self.keys)
        last = (first + share).clamp(max=self.keys)
        start = torch.where(row < ROWS * -(-wanted // ROWS), first, last)
        queries = self.queries.cpu()[row.clamp(max=wanted - 1)].repeat(count)
        stop = last.expand(-1, length)
        return Shares(queries.to(device), *(x.flatten().int().to(device) for x in (start, stop)), count, takers)
