"""Counts visible pairs exactly, in memory linear in the length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import Pattern
from .clauses import Clause, Extent, positions
from .cover import corners, descend, visible
from .normal_form import normal_form

COUNTING_BLOCK = 64


def density(pattern: Pattern, extent: Extent) -> float:
    """The share of all pairs of the extent that the pattern allows, averaged over its heads."""
    pairs = len(extent.queries) * len(extent.keys)
    if pairs == 0:
        return 0.0
    cuts = pattern.head_cuts or (0, 1)
    visible_pairs = sum(count(group, extent) * (last - first) for first, last, group in pattern.groups(cuts[-1]))
    return visible_pairs / (pairs * cuts[-1])


def count(pattern: Pattern, extent: Extent) -> int:
    """How many pairs of the extent the pattern allows."""
    form = normal_form(pattern, extent)
    rest = 0 if form.rest is None else _count_blocks(form.rest, extent)
    return rest + sum(count_clause(clause, extent) for clause in form.clauses)


def count_clause(clause: Clause, extent: Extent) -> int:
    """How many pairs of the extent belong to the clause."""
    return int(visible_keys(clause, extent).sum())


def visible_keys(clause: Clause, extent: Extent) -> NDArray[np.int64]:
    """For each query of the extent, how many keys the clause lets it see."""
    offsets = clause.offsets & extent.offsets
    q = positions(extent.queries)
    first, last = (
        np.maximum(q - offsets.high, extent.keys.start),
        np.minimum(q - offsets.low, extent.keys.stop - 1),
    )
    chosen = np.ones(len(q), bool) if clause.queries is None else clause.queries.copy()
    if clause.documents is not None:
        cuts = np.array(clause.documents)
        number = np.searchsorted(cuts, q, "right") - 1
        chosen &= (number >= 0) & (number < len(cuts) - 1)
        number = np.clip(number, 0, len(cuts) - 2)
        first, last = np.maximum(first, cuts[number]), np.minimum(last, cuts[number + 1] - 1)
    chosen &= first <= last
    first, last = first[chosen] - extent.keys.start, last[chosen] - extent.keys.start
    seen = np.zeros(len(q), np.int64)
    every = _members_between(clause.keys, 1, first, last, last)
    if offsets.step > 1:
        on_step = _members_between(clause.keys, offsets.step, first, last, q[chosen] - extent.keys.start)
        every = on_step if offsets.on_step else every - on_step
    seen[chosen] = every
    return seen


def _members_between(
    keys: NDArray[np.bool_] | None, step: int, first: NDArray, last: NDArray, phase: NDArray
) -> NDArray[np.int64]:
    """How many members lie in `first..last` at a multiple of `step` from `phase`."""
    if keys is None:
        return (last - phase) // step - (first - 1 - phase) // step
    rows = -(-len(keys) // step) + 1
    table = np.zeros(rows * step, np.int64)
    table[step : step + len(keys)] = keys
    running = table.reshape(rows, step).cumsum(axis=0).ravel()  # members at this residue up to each position
    above, below = last - (last - phase) % step, first - 1 - (first - 1 - phase) % step
    return running[above + step] - running[np.maximum(below + step, 0)] * (below + step >= 0)


def _count_blocks(pattern: Pattern, extent: Extent) -> int:
    total = 0
    for full, squares in descend(pattern, extent, COUNTING_BLOCK):
        if full:
            q_first, q_last, k_first, k_last = corners(extent, squares.size, squares.rows, squares.columns)
            total += int(((q_last - q_first + 1) * (k_last - k_first + 1)).sum())
        else:
            total += sum(int(masks.sum()) for masks in visible(pattern, extent, squares))
    return total
