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

from ...selectors.selection import Selection
from ..chosen_rows import filled, listed, marked, ordered_rows
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


@triton.jit(do_not_specialize=["queries", "keys", "chosen", "groups", "places", "total"])
def _lists(
    indices, entries, counts, members, blind, marks, queries, keys, chosen, groups, places, total,
    CAUSAL: tl.constexpr, TOGETHER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    words = tl.cdiv(keys, 32)
    marks += tl.program_id(0).to(tl.int64) * words * TOGETHER
    for group in range(tl.program_id(0), total, tl.num_programs(0)):
        at = tl.zeros([], tl.int64) + group
        rows = at // groups * queries
        first = at % groups * TOGETHER
        filled(marks, words * TOGETHER, 0, TILE)
        for m in range(tl.minimum(queries - first, TOGETHER)):
            query, limit = first + m, keys
            if CAUSAL:
                limit = tl.maximum(keys - queries + query + 1, 0)
            some = marked(indices + (rows + query) * chosen, marks + m * words, chosen, limit, TILE)
            tl.store(blind + rows + query, (some == 0).to(tl.int8))
        count = listed(marks, entries + at * places, members + at * places, keys, TOGETHER, TILE)
        tl.store(counts + group, count)


def group_lists(selection: Selection, keys: int, together: int) -> tuple[GroupLists, Tensor | None]:
    """(lists of groups of `together` neighbouring queries, [B, Q] whether a query sees nothing where they are several).

    Of single latents, one choice for all heads, without a mask. The last query stands at the last key.
    """
    if together == 1:
        entries, counts = ordered_rows(selection, keys)
        return GroupLists(entries[:, 0], counts[:, 0], None), None
    indices = selection.indices[:, 0].contiguous()
    batch, queries, chosen = indices.shape
    groups, places = -(-queries // together), min(together * chosen, keys)
    entries = indices.new_empty(batch, groups, places, dtype=torch.int32)
    counts, members = entries.new_empty(batch, groups), torch.empty_like(entries)
    blind = indices.new_empty(batch, queries, dtype=torch.int8)
    programs = min(batch * groups, PROGRAMS * multiprocessors(indices.device))
    marks = entries.new_empty(programs, together, -(-keys // 32))
    _lists[(programs,)](
        indices, entries, counts, members, blind, marks, queries, keys, chosen, groups, places, batch * groups,
        selection.causal, together, TILE, num_warps=4,
    )  # fmt: skip
    return GroupLists(entries, counts, members), blind.view(torch.bool)
