"""A choice of keys in the order in which kernels read it, and the other way round: for each key who chose it.

Rows ascend and hold each number once. A key's list names its entries in the order of the queries, so that whoever
owns the key sums in one order, and the same call gives the same bits. Both are made on the device without waiting
for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from ..selectors.selection import Selection

SMALLEST_BLOCK = 16
"""Blocks of fewer keys fill no tile: they are told key by key."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What each query sees: keys, or blocks of so many keys."""

    indices: Tensor
    """int32 [B, N, Q, n], dense: ascending, each once, none that is hidden as a whole; -1 behind the last."""
    counts: Tensor
    """int32 [B, N, Q], dense: how many there are."""
    block: int
    """Of the blocks that the numbers are of; 1 where they are of keys. Of a block's keys, those beyond the last key
    are hidden, and under `causal` those after the query."""
    causal: bool
    """Whether blocks hold keys after the query; false where the numbers are of keys, of which none is hidden."""

    @property
    def size(self) -> int:
        """Numbers that a query has room for."""
        return self.indices.shape[3]

    @staticmethod
    def standing(places: Tensor) -> Rows:
        """Of keys that stand at places [B, Q, n], each of a query's at one alone, -1 anywhere: good for lists."""
        indices = places[:, None]
        return Rows(indices, (indices >= 0).sum(-1, dtype=torch.int32), 1, causal=False)

    def places(self, keys: int) -> int:
        """How many different numbers there may be, of so many keys."""
        return -(-keys // self.block)


def canonical(selection: Selection, keys: int) -> Rows:
    """The choice as rows. Blocks that are small, or under a mask, are told key by key."""
    indices, block = selection.indices, selection.block_size
    queries = indices.shape[2]
    if _has_kernels(selection):
        from .chosen_rows import ordered_rows

        return Rows(*ordered_rows(selection, keys), block, selection.causal and block > 1)
    if block >= SMALLEST_BLOCK and selection.mask is None:
        numbers, visible = Selection(indices).distinct(0, queries, -(-keys // block))
        if selection.causal:
            position = torch.arange(keys - queries, keys, device=indices.device)[:, None]
            visible = visible & (numbers * block <= position)
    else:
        numbers, visible = selection.distinct(0, queries, keys)
        block = 1
    behind = torch.iinfo(torch.int32).max
    rows = numbers.int().masked_fill(~visible, behind).sort(dim=-1).values
    counts = visible.sum(-1, dtype=torch.int32)
    return Rows(rows.masked_fill(rows == behind, -1), counts, block, selection.causal and block > 1)


def standing(selection: Selection, keys: int) -> Tensor:
    """int32 [B, N, Q, n], dense: `Selection.standing` of all queries."""
    if selection.block_size == 1 and _has_kernels(selection):
        from .chosen_rows import standing_rows

        return standing_rows(selection, keys)
    return selection.standing(0, selection.indices.shape[2], keys).contiguous()


def _has_kernels(selection: Selection) -> bool:
    """Whether Triton makes the rows, in one launch and without sorting: the same ones."""
    large = selection.block_size == 1 or selection.block_size >= SMALLEST_BLOCK
    return large and selection.mask is None and selection.indices.is_cuda and find_spec("triton") is not None


class InverseLists(NamedTuple):
    """For each number, the entries of some queries' rows that hold it."""

    starts: Tensor
    """int32 [B, N, P + 1], dense: the list of number `p` is `entries[starts[p]] … entries[starts[p + 1] - 1]`."""
    entries: Tensor
    """int32 [B, N, q · n], dense, ascending in each list: `(query - first) · n + place`. What stands behind the last
    list names places without a number."""


def inverse_lists(rows: Rows, keys: int, first: int = 0, last: int | None = None) -> InverseLists:
    """The lists of queries `first … last - 1`, which must have room for fewer than 2³¹ numbers."""
    some = rows.indices[:, :, first:last].flatten(2)
    places = rows.places(keys)
    ordered, entries = some.masked_fill(some < 0, places).sort(dim=-1, stable=True)
    bounds = torch.arange(places + 1, dtype=torch.int32, device=some.device)
    starts = torch.searchsorted(ordered, bounds.expand(*some.shape[:2], -1).contiguous(), out_int32=True)
    return InverseLists(starts, entries.int())
