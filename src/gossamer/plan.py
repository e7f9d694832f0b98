"""Turns a pattern, at given lengths, into a few primitive terms that a kernel can run."""

from __future__ import annotations

import logging
import textwrap
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .patterns.base import Pattern
from .patterns.clauses import Clause, Extent
from .patterns.counting import count
from .patterns.cover import cover
from .patterns.normal_form import normal_form
from .patterns.offsets import Offsets

logger = logging.getLogger(__name__)

SMALLEST_BLOCK, USUAL_BLOCK, LARGEST_BLOCK = 16, 64, 128


@dataclass(frozen=True, eq=False)
class Band:
    """A diagonal strip: every key whose distance `query - key` lies in `offsets`. Loop bounds, no mask."""

    offsets: Offsets
    documents: tuple[int, ...] | None

    def describe(self) -> str:
        step = f", every {self.offsets.step}th" if self.offsets.step > 1 else ""
        return f"Band: {_distances(self.offsets)}{step}{_packing(self.documents)}"


@dataclass(frozen=True, eq=False)
class Columns:
    """A few keys that many queries see, gathered once; each query sees those at a distance in `offsets`."""

    keys: NDArray[np.int64]
    offsets: Offsets
    documents: tuple[int, ...] | None

    def describe(self) -> str:
        return f"Columns: {len(self.keys):,} gathered keys, {_distances(self.offsets)}{_packing(self.documents)}"


@dataclass(frozen=True, eq=False)
class Rows:
    """A few queries (by index) that see much: all keys, or those in `keys`, at a distance in `offsets`."""

    queries: NDArray[np.int64]
    keys: NDArray[np.int64] | None
    offsets: Offsets
    documents: tuple[int, ...] | None

    def describe(self) -> str:
        keys = "all keys" if self.keys is None else f"{len(self.keys):,} gathered keys"
        where = f"{_distances(self.offsets)}{_packing(self.documents)}"
        return f"Rows: {len(self.queries):,} gathered queries on {keys}, {where}"


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of `size` × `size` pairs in rows: those of query block `i` are `starts[i]:starts[i + 1]`.

    Block `b` covers key block `columns[b]`; `tile[b]` is its mask in `tiles` [T, size, size], or -1 where all
    of it is visible.
    """

    size: int
    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    tile: NDArray[np.int64]
    tiles: NDArray[np.bool_]

    def describe(self) -> str:
        partial = int((self.tile >= 0).sum())
        return (
            f"Blocks: {len(self.columns):,} of {self.size} × {self.size}, "
            f"{partial:,} of them partial with {len(self.tiles):,} distinct masks"
        )


Term = Band | Columns | Rows | Blocks


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Heads `first … last - 1`, which share a pattern, and the disjoint terms that cover it."""

    first: int
    last: int
    pattern: Pattern
    terms: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What will run for a pattern at these lengths; `print(plan)` says it in words and numbers."""

    queries: int
    keys: int
    heads: int
    groups: tuple[HeadGroup, ...]

    @property
    def extent(self) -> Extent:
        return Extent.aligned(self.queries, self.keys)

    @cached_property
    def pairs(self) -> int:
        """Visible (query, key) pairs, summed over the heads."""
        return sum(count(group.pattern, self.extent) * (group.last - group.first) for group in self.groups)

    @property
    def share(self) -> float:
        """Visible share of all pairs, averaged over the heads."""
        return self.pairs / max(self.queries * self.keys * self.heads, 1)

    def __str__(self) -> str:
        lines = [
            f"{self.queries:,} queries × {self.keys:,} keys, {self.heads} heads: "
            f"{self.pairs:,} visible pairs, {self.share:.3%} of all"
        ]
        for group in self.groups:
            lines.append(f"  heads {group.first}-{group.last - 1}: {shortened(group.pattern)}")
            lines += [f"    {term.describe()}" for term in group.terms] or ["    nothing is visible"]
        return "\n".join(lines)


@lru_cache(maxsize=256)
def plan(pattern: Pattern, queries: int, keys: int, heads: int) -> Plan:
    """Reduces `pattern` to disjoint terms for each group of heads; cached for the last 256 problems.

    The last query stands at the last key. Costs microseconds for windows; memory is linear in the lengths for
    regular patterns, and linear in the number of touched blocks for the others.

    Raises:
        ValueError: The pattern is written for another number of heads, or a length is negative.
    """
    if queries < 0 or keys < 0 or heads < 1:
        raise ValueError(f"queries={queries}, keys={keys}, heads={heads}: lengths are at least 0 and heads at least 1")
    made = _plan(tuple(pattern.groups(heads)), queries, keys, heads)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("planned %s", made)
    return made


@lru_cache(maxsize=256)
def resized(made: Plan, queries: int, keys: int) -> Plan:
    """The plan of the same patterns at other lengths: one object, whichever lengths `made` has."""
    return _plan(tuple((group.first, group.last, group.pattern) for group in made.groups), queries, keys, made.heads)


@lru_cache(maxsize=256)
def _plan(groups: tuple[tuple[int, int, Pattern], ...], queries: int, keys: int, heads: int) -> Plan:
    extent = Extent.aligned(queries, keys)
    planned = (HeadGroup(first, last, pattern, tuple(_terms(pattern, extent))) for first, last, pattern in groups)
    return Plan(queries, keys, heads, tuple(planned))


def shortened(pattern: Pattern) -> str:
    """The pattern's text, cut in the middle of nowhere if it is long: for people, not for `parse`."""
    return textwrap.shorten(pattern.spec, 120, placeholder=" …")


def _terms(pattern: Pattern, extent: Extent) -> list[Term]:
    if not extent.queries or not extent.keys:
        return []
    form = normal_form(pattern, extent)
    terms = [_term(clause, len(extent.keys)) for clause in form.clauses]
    if form.rest is not None:
        terms += _blocks(form.rest, extent)
    return terms


def _term(clause: Clause, length: int) -> Term:
    keys = None if clause.keys is None else np.flatnonzero(clause.keys)
    if clause.queries is not None:
        return Rows(np.flatnonzero(clause.queries), keys, clause.offsets, clause.documents)
    if keys is None and clause.offsets.on_step:
        return Band(clause.offsets, clause.documents)
    return Columns(np.arange(length) if keys is None else keys, clause.offsets, clause.documents)


def _blocks(pattern: Pattern, extent: Extent) -> list[Blocks]:
    size = min(max(pattern.grain or USUAL_BLOCK, SMALLEST_BLOCK), LARGEST_BLOCK)
    found = cover(pattern, extent, size)
    if not len(found.rows):
        return []
    rows = -(-len(extent.queries) // size)
    starts = np.searchsorted(found.rows, np.arange(rows + 1))
    return [Blocks(size, starts, found.columns, found.tile, found.tiles)]


def _distances(offsets: Offsets) -> str:
    before = (
        f"{offsets.high:,} before" if offsets.high > 0 else "itself" if not offsets.high else f"{-offsets.high:,} after"
    )
    after = f"{-offsets.low:,} after" if offsets.low < 0 else "itself" if not offsets.low else f"{offsets.low:,} before"
    return f"from {before} to {after}"


def _packing(documents: tuple[int, ...] | None) -> str:
    return "" if documents is None else f", within each of {len(documents) - 1:,} documents"
