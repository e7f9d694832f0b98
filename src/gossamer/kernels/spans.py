"""Terms as runs: queries in an order, keys in an order, and each query sees one run of the keys.

This is all that a GPU kernel has to know of a pattern. Bands, gathered columns and rows, dilations and packed
documents differ only in the orders and in where the runs begin and end. Neither end ever moves back from a query to
the next, so the queries that see one key are a run too, and the backward pass is the same problem turned over.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..plan import Band, Blocks, Columns, HeadGroup, Plan, Rows, Term
from .captured import kept, refuse_capture
from .devices import int32_on

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Span:
    """Query `i` of the order sees keys `start[i] … stop[i] - 1` of the order."""

    term: Band | Columns | Rows
    queries: Tensor | None
    """int64 [n], the order as indices of the query axis; None for all queries as they stand."""
    keys: Tensor | None
    """int64 [m], the order as indices of the key axis; None for all keys as they stand."""
    start: Tensor
    """int32 [n], never falls; [B, n] where each sequence has its own."""
    stop: Tensor
    """The same, and nowhere below `start`."""
    key_count: int
    all_keys: int
    """Length of the key axis."""
    offset: int
    """Position of the first query of the query axis."""

    @property
    def query_count(self) -> int:
        return self.start.shape[-1]

    @cached_property
    def seen_by(self) -> tuple[Tensor, Tensor]:
        """(first, last), int32 [m] each: queries `first[j] … last[j] - 1` of the order see key `j`."""
        refuse_capture(self.start.device)
        start, stop = (end.cpu().numpy() for end in (self.start, self.stop))
        first = np.searchsorted(stop, np.arange(self.key_count), "right")
        last = np.maximum(first, np.searchsorted(start, np.arange(self.key_count), "right"))
        return int32_on(self.start.device, first), int32_on(self.start.device, last)

    @cached_property
    def outside(self) -> Tensor | None:
        """bool [all keys], those that the order lacks; None where it lacks none."""
        if self.keys is None or self.key_count == self.all_keys:
            return None
        refuse_capture(self.start.device)
        outside = np.ones(self.all_keys, dtype=bool)
        outside[self.keys.cpu().numpy()] = False
        return torch.from_numpy(outside).to(self.start.device)


def apart(ends: Tensor) -> int:
    """From the ends of a sequence's runs to those of the next; 0 where all share one table."""
    return ends.shape[-1] if ends.dim() == 2 and ends.shape[0] > 1 else 0


def without_span(plan: Plan, *, blocks: bool = False) -> str | None:
    """What of the plan cannot be written as runs, for a person to read, or None where all of it can.

    `blocks` lets pass what is blocks.
    """
    for group in plan.groups:
        for term in group.terms:
            if not _is_regular(term) and not (blocks and isinstance(term, Blocks)):
                return f"heads {group.first}-{group.last - 1} have a term that is no run of keys ({term.describe()})"
    return None


def spans(group: HeadGroup, plan: Plan, device: torch.device) -> tuple[Span, ...]:
    """The group's terms as spans on the device; kept for the last 64 groups, about 8 bytes a query each."""
    return kept(_spans(group, plan, device), device)


@lru_cache(maxsize=64)
def _spans(group: HeadGroup, plan: Plan, device: torch.device) -> tuple[Span, ...]:
    refuse_capture(device)
    return tuple(_span(term, plan, device) for term in group.terms if _is_regular(term))


def _is_regular(term: Term) -> TypeGuard[Band | Columns | Rows]:
    return not isinstance(term, Blocks) and term.offsets.on_step


def _span(term: Band | Columns | Rows, plan: Plan, device: torch.device) -> Span:
    offset, step = plan.extent.queries.start, term.offsets.step
    queries = _by_residue(term.queries if isinstance(term, Rows) else None, offset, plan.queries, step)
    keys = _by_residue(None if isinstance(term, Band) else term.keys, 0, plan.keys, step)
    positions = offset + (np.arange(plan.queries) if queries is None else queries)
    key_positions = np.arange(plan.keys) if keys is None else keys
    earliest, latest = _reach(term, positions, plan.keys)
    # Positions of one residue lie together in the order, so that (residue, position) rises along it.
    row, width = positions % step, plan.keys + 1
    rising = key_positions % step * width + key_positions
    start = np.searchsorted(rising, row * width + earliest, "left")
    stop = np.maximum(start, np.searchsorted(rising, row * width + latest, "right"))
    query_order, key_order = (
        None if order is None else torch.from_numpy(order).to(device) for order in (queries, keys)
    )
    begin, end = int32_on(device, start), int32_on(device, stop)
    return Span(term, query_order, key_order, begin, end, len(key_positions), plan.keys, offset)


def _by_residue(indices: Integers | None, offset: int, length: int, step: int) -> Integers | None:
    """The indices ordered by their position's remainder, then by position; None where that is all as it stands."""
    if step == 1:
        return indices
    indices = np.arange(length) if indices is None else indices
    return indices[np.argsort((indices + offset) % step, kind="stable")]


def _reach(term: Band | Columns | Rows, positions: Integers, keys: int) -> tuple[Integers, Integers]:
    """The earliest and the latest key position that each query's distance and document allow, cut to the keys."""
    earliest, latest = positions - term.offsets.high, positions - term.offsets.low
    if term.documents is not None:
        bounds = np.array(term.documents)
        document = np.searchsorted(bounds, positions, "right")
        ends = np.concatenate([bounds[:1], bounds, bounds[-1:]])  # outside the documents there is nothing to see
        earliest, latest = np.maximum(earliest, ends[document]), np.minimum(latest, ends[document + 1] - 1)
    return np.clip(earliest, 0, keys), np.clip(latest, -1, keys - 1)
