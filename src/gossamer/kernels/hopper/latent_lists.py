"""Which latents each group of neighbouring queries reads, from what was chosen for each query: every one once.

A list stands in ascending order, and its count says where it ends. What is hidden or is no latent is left out. Nothing
waits for the device, and memory does not grow with the pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..devices import multiprocessors

TILE = 512
"""Numbers that a program looks at together."""

PROGRAMS = 4
"""Of a multiprocessor: each has bits of its own, one for every latent and query."""


class GroupLists(NamedTuple):
    """What the kernels read of a selection."""

    entries: Tensor
    """int32 [B, groups, places]"""
    counts: Tensor
    """int32 [B, groups]"""
    members: Tensor | None
    """Like the entries: a bit for each query of the group that sees the latent; None where a group is one query."""

    def blind(self, queries: int, together: int) -> Tensor:
        """[B, Q] whether a query sees nothing, where groups are `together` queries."""
        if self.members is None:
            return self.counts == 0
        exists = torch.arange(self.entries.shape[2], device=self.entries.device) < self.counts[..., None]
        bits = torch.where(exists, self.members, 0)
        return torch.stack([~(bits >> m & 1).any(-1) for m in range(together)], -1).flatten(1)[:, :queries]


@triton.jit
def _chosen(indices, query, place, queries, chosen, limit):
    """Numbers at places of a query's row, and which of them are of latents that it may see."""
    exists = (place < chosen) & (query < queries)
    x = tl.load(indices + query * chosen + place, mask=exists, other=-1).to(tl.int64)
    return x, (x >= 0) & (x < limit)


@triton.jit
def _as_it_is(indices, entries, query, queries, chosen, limit, TILE: tl.constexpr):
    """(whether a row is a list already, its count), having copied it."""
    fine, count = tl.full([], 1, tl.int32), tl.full([], 0, tl.int32)
    for first in range(0, chosen, TILE):
        place = first + tl.arange(0, TILE)
        x, seen = _chosen(indices, query, place, queries, chosen, limit)
        before, seen_before = _chosen(indices, query, tl.maximum(place - 1, 0), queries, chosen, limit)
        follows = (place == 0) | (seen_before & (before < x))
        fine = tl.minimum(fine, tl.min(((x < 0) | (seen & follows)).to(tl.int32)))
        count += tl.sum(seen.to(tl.int32))
        tl.store(entries + place, x.to(tl.int32), mask=place < chosen)
    return fine, count


@triton.jit
def _mark(indices, marks, words, query, queries, chosen, limit, TILE: tl.constexpr):
    """Sets the bits of the latents that a query chose."""
    for first in range(0, chosen, TILE):
        x, seen = _chosen(indices, query, first + tl.arange(0, TILE), queries, chosen, limit)
        x = x.to(tl.int32)
        tl.atomic_or(marks + (x >> 5), tl.full([TILE], 1, tl.int32) << (x & 31), mask=seen)


@triton.jit
def _listed(marks, entries, members, words, keys, TOGETHER: tl.constexpr, TILE: tl.constexpr):
    """The count of a group's list, written in ascending order."""
    total = tl.full([], 0, tl.int32)
    for first in range(0, keys, TILE):
        key = first + tl.arange(0, TILE)
        bits = tl.zeros([TILE], tl.int32)
        for m in tl.static_range(TOGETHER):  # past the first cache, which does not know what atomics have written
            word = tl.load(marks + m * words + (key >> 5), mask=key < keys, other=0, cache_modifier=".cg")
            bits |= ((word >> (key & 31)) & 1) << m
        listed = bits != 0
        place = total + tl.cumsum(listed.to(tl.int32), 0) - 1
        tl.store(entries + place, key, mask=listed)
        if TOGETHER > 1:
            tl.store(members + place, bits, mask=listed)
        total += tl.sum(listed.to(tl.int32))
    return total


@triton.jit(do_not_specialize=["queries", "keys", "chosen", "groups", "places", "total"])
def _lists(
    indices, entries, counts, members, marks, queries, keys, chosen, groups, places, total,
    CAUSAL: tl.constexpr, TOGETHER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    words = tl.cdiv(keys, 32)
    marks += tl.program_id(0).to(tl.int64) * words * TOGETHER
    for group in range(tl.program_id(0), total, tl.num_programs(0)):
        at = tl.zeros([], tl.int64) + group
        row = indices + at // groups * queries * chosen
        query = at % groups * TOGETHER
        to = at * places
        fine, count = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
        if TOGETHER == 1:
            limit = keys
            if CAUSAL:
                limit = tl.maximum(keys - queries + query + 1, 0)
            fine, count = _as_it_is(row, entries + to, query, queries, chosen, limit, TILE)
        if fine == 0:
            tl.debug_barrier()
            for first in range(0, words * TOGETHER, TILE):
                word = first + tl.arange(0, TILE)
                tl.store(marks + word, tl.zeros([TILE], tl.int32), mask=word < words * TOGETHER)
            tl.debug_barrier()
            for m in range(TOGETHER):
                limit = keys
                if CAUSAL:
                    limit = tl.maximum(keys - queries + query + m + 1, 0)
                _mark(row, marks + m * words, words, query + m, queries, chosen, limit, TILE)
            tl.debug_barrier()
            count = _listed(marks, entries + to, members + to, words, keys, TOGETHER, TILE)
        tl.store(counts + group, count)


def group_lists(indices: Tensor, keys: int, *, together: int, causal: bool) -> GroupLists:
    """Lists of groups of `together` neighbouring queries, from indices [B, Q, n].

    The last query stands at the last key. A row that is a list already, as `top_keys` gives them, is only copied where
    a group is one query.
    """
    indices = indices.contiguous()
    batch, queries, chosen = indices.shape
    groups, places = -(-queries // together), min(together * chosen, keys)
    if together == 1:
        places = chosen
    entries = indices.new_empty(batch, groups, places, dtype=torch.int32)
    counts = entries.new_empty(batch, groups)
    members = entries if together == 1 else torch.empty_like(entries)
    programs = min(batch * groups, PROGRAMS * multiprocessors(indices.device))
    marks = entries.new_empty(programs, together, -(-keys // 32))
    _lists[(programs,)](
        indices, entries, counts, members, marks, queries, keys, chosen, groups, places, batch * groups,
        causal, together, TILE, num_warps=4,
    )  # fmt: skip
    return GroupLists(entries, counts, members if together > 1 else None)
