"""Which keys of other shards the queries of a shard read, by the plan of a pattern."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..patterns.base import Pattern, looks_at_distance_alone
from ..patterns.clauses import Clause, Extent
from ..patterns.cover import cover
from ..patterns.normal_form import normal_form
from ..patterns.offsets import Offsets
from ..patterns.section import Run, Section, runs_of
from ..plan import LARGEST_BLOCK

FEW = 8
"""Queries with keys of their own are gone over as rows where they are at most one in as many."""


@dataclass(frozen=True, eq=False)
class Side:
    """Keys before or behind a shard that some of its queries read."""

    keys: tuple[Run, ...]
    first: int
    """Position of the first query that reads one of them."""
    stop: int
    """Position behind the last one."""


@dataclass(frozen=True, eq=False)
class Reads:
    """What the queries of one shard need of others."""

    sides: tuple[Side, ...]
    """Keys before the shard, and keys behind it, where there are such."""
    rows: tuple[Run, ...]
    """Queries of the shard that see so much that they travel to the keys instead."""


@lru_cache(maxsize=1024)
def reads(pattern: Pattern, length: int, first: int, stop: int) -> Reads:
    """What queries `first … stop - 1` of a sequence of `length` tokens read of the others, by a pattern of one head.

    A band reads the keys that its distances reach, without gaps; what is gone over in blocks reads whole blocks.

    >>> from gossamer import Causal, Window
    >>> reads(Causal() & Window(4), 100, 50, 75).sides
    (Side(keys=((47, 50, 1),), first=50, stop=53),)
    """
    queries = range(first, stop)
    extent = Extent(queries, range(length))
    form = normal_form(pattern, extent)
    rows = np.zeros(len(queries), bool)
    before, behind = _Gathered(queries), _Gathered(queries)
    for clause in form.clauses:
        if clause.queries is not None and clause.queries.sum() * FEW <= len(queries):
            rows |= clause.queries
            continue
        keys, head, tail = _keys_of(clause, queries, length)
        before.add(keys[keys < first], clause.offsets, head)
        behind.add(keys[keys >= stop], clause.offsets, tail)
    if form.rest is not None:
        keys = _in_blocks(form.rest, extent)
        before.add(keys[keys < first], extent.offsets, queries)
        behind.add(keys[keys >= stop], extent.offsets, queries)
    sides = tuple(side for gathered in (before, behind) for side in gathered.sides())
    return Reads(sides, runs_of(np.flatnonzero(rows) + first))


def section(pattern: Pattern, queries: tuple[Run, ...], keys: tuple[Run, ...]) -> Pattern:
    """The pattern between these; the pattern itself where it is the same wherever a sequence begins."""
    return pattern if queries == keys and looks_at_distance_alone(pattern) else Section(pattern, queries, keys)


class _Gathered:
    """Keys on one side of a shard, of one clause after another, and the queries that read them."""

    def __init__(self, queries: range):
        self._queries, self._keys = queries, list[NDArray[np.int64]]()
        self._first, self._stop, self._step = queries.stop, queries.start, 1

    def add(self, keys: NDArray[np.int64], offsets: Offsets, among: range) -> None:
        """`among`: all queries that may read one of the keys."""
        first = max(int(keys[0]) + offsets.low, among.start) if len(keys) else 0
        stop = min(int(keys[-1]) + offsets.high + 1, among.stop) if len(keys) else 0
        if first < stop:
            self._keys.append(keys)
            self._first, self._stop = min(self._first, first), max(self._stop, stop)
            self._step = math.lcm(self._step, offsets.step)

    def sides(self) -> Iterator[Side]:
        """The one side, or none where nobody reads anything."""
        if self._keys:
            # A band with gaps is one again in the section of as many queries as fill its steps.
            missing = -(self._stop - self._first) % self._step
            stop = min(self._stop + missing, self._queries.stop)
            first = max(self._first - (missing - (stop - self._stop)), self._queries.start)
            yield Side(runs_of(np.unique(np.concatenate(self._keys))), first, stop)


def _keys_of(clause: Clause, queries: range, length: int) -> tuple[NDArray[np.int64], range, range]:
    """Keys that queries read by the clause, and the queries that may read those before them and those behind them."""
    first = max(queries.start - clause.offsets.high, 0)
    stop = min(queries.stop - clause.offsets.low, length)
    head = tail = queries
    if clause.documents is not None:
        cuts = np.array((-1, *clause.documents, length))  # the documents, and what lies in none on either side
        (start, end), (last, behind) = (_document(cuts, place) for place in (queries.start, queries.stop - 1))
        first, stop = max(first, start), min(stop, behind)
        head, tail = range(queries.start, min(end, queries.stop)), range(max(last, queries.start), queries.stop)
    keys = np.arange(first, max(stop, first))
    return (keys if clause.keys is None else keys[clause.keys[keys]]), head, tail


def _document(cuts: NDArray[np.int64], position: int) -> tuple[int, int]:
    number = int(np.searchsorted(cuts, position, "right"))
    return int(cuts[number - 1]), int(cuts[min(number, len(cuts) - 1)])


def _in_blocks(pattern: Pattern, extent: Extent) -> NDArray[np.int64]:
    size = LARGEST_BLOCK if pattern.grain is None else min(pattern.grain, LARGEST_BLOCK)
    columns = np.unique(cover(pattern, extent, size).columns)
    keys = (columns[:, None] * size + np.arange(size)).ravel()
    return keys[keys < len(extent.keys)]
