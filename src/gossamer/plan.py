"""Turns a pattern, at given lengths, into a few primitive terms that a kernel can run."""

from __future__ import annotations

import logging
import math
import textwrap
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .patterns.base import Pattern
from .patterns.clauses import Clause, Extent
from .patterns.counting import count, count_clause
from .patterns.cover import cover
from .patterns.normal_form import normal_form
from .patterns.offsets import Offsets
from .patterns.per_head import PerHead

logger = logging.getLogger(__name__)

SMALLEST_BLOCK, USUAL_BLOCK, LARGEST_BLOCK = 16, 64, 128

WIDEST_BAND = 8
"""Blocks across a band that may be gone over with the blocks beside it."""


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
    """Blocks of `size` × `size` pairs: row `i` of layout `l` has those at `starts[l, i]:starts[l, i + 1]`.

    Block `b` covers key block `columns[b]`; `tile[b]` is its mask in `tiles` [T, size, size], or -1 where all
    of it is visible. Within a row the columns ascend.
    """

    size: int
    layouts: NDArray[np.int64]
    """[heads of the group], the layout of each."""
    starts: NDArray[np.int64]
    """[layouts, rows + 1]."""
    columns: NDArray[np.int64]
    tile: NDArray[np.int64]
    tiles: NDArray[np.bool_]

    def of_heads(self, first: int, last: int) -> Blocks:
        """The blocks of the group's heads `first … last - 1`, which share a layout."""
        starts = self.starts[self.layouts[first]]
        entries = slice(starts[0], starts[-1])
        layouts = np.zeros(last - first, np.int64)
        return Blocks(
            self.size, layouts, (starts - starts[0])[None], self.columns[entries], self.tile[entries], self.tiles
        )

    def describe(self) -> str:
        partial = int((self.tile >= 0).sum())
        count = len(self.starts)
        return (
            f"Blocks: {len(self.columns):,} of {self.size} × {self.size}"
            f"{f' in {count:,} layouts' if count > 1 else ''}, "
            f"{partial:,} of them partial with {len(self.tiles):,} distinct masks"
        )


Term = Band | Columns | Rows | Blocks


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Heads `first … last - 1`, which share a pattern or differ in blocks alone, and the disjoint terms that cover it.

    Where they differ, the pattern is a `PerHead` of these heads, and the last term has a layout for each.
    """

    first: int
    last: int
    pattern: Pattern
    terms: tuple[Term, ...]

    @property
    def patterns(self) -> list[tuple[int, int, Pattern]]:
        """(first head, last head + 1, pattern) of the heads that share all of it."""
        members = self.pattern.groups(self.last - self.first)
        return [(self.first + first, self.first + last, pattern) for first, last, pattern in members]

    @property
    def apart(self) -> list[HeadGroup]:
        """The same as groups of one layout each."""
        blocks = self.terms[-1] if self.terms else None
        if not isinstance(blocks, Blocks) or len(blocks.starts) == 1:
            return [self]
        cuts = [*np.flatnonzero(np.diff(blocks.layouts, prepend=-1)).tolist(), self.last - self.first]
        return [
            HeadGroup(
                self.first + first, self.first + last, self.pattern.for_head(first),
                (*self.terms[:-1], blocks.of_heads(first, last)),
            )
            for first, last in pairwise(cuts)
        ]  # fmt: skip


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
        members = [member for group in self.groups for member in group.patterns]
        return sum(count(pattern, self.extent) * (last - first) for first, last, pattern in members)

    @cached_property
    def apart(self) -> Plan:
        """The same with heads whose blocks differ in groups of their own."""
        groups = tuple(part for group in self.groups for part in group.apart)
        return self if len(groups) == len(self.groups) else replace(self, groups=groups)

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
    return _plan(tuple(member for group in made.groups for member in group.patterns), queries, keys, made.heads)


def in_blocks(made: Plan, visible: NDArray[np.bool_], size: int) -> Plan:
    """The plan of what blocks of `size` show, [heads or 1, query blocks, key blocks], of one that shows everything."""
    count, rows, _ = visible.shape
    ends = np.append(0, visible.sum(axis=-1).ravel().cumsum())
    starts = ends[np.arange(count)[:, None] * rows + np.arange(rows + 1)]
    columns = visible.nonzero()[-1]
    layouts = np.arange(made.heads) if count > 1 else np.zeros(made.heads, np.int64)
    term = Blocks(size, layouts, starts, columns, np.full(len(columns), -1), np.zeros((0, size, size), bool))
    return replace(made, groups=(HeadGroup(0, made.heads, made.groups[0].pattern, (term,)),))


@lru_cache(maxsize=256)
def _plan(groups: tuple[tuple[int, int, Pattern], ...], queries: int, keys: int, heads: int) -> Plan:
    extent = Extent.aligned(queries, keys)
    terms = {pattern: _terms(pattern, extent) for pattern in {pattern: None for _, _, pattern in groups}}
    runs: list[list[HeadGroup]] = []
    for first, last, pattern in groups:
        group = HeadGroup(first, last, pattern, terms[pattern])
        if runs and _differ_in_blocks_alone(runs[-1][0], group):
            runs[-1].append(group)
        else:
            runs.append([group])
    return Plan(queries, keys, heads, tuple(_joined(run) for run in runs))


def shortened(pattern: Pattern) -> str:
    """The pattern's text, cut in the middle of nowhere if it is long: for people, not for `parse`."""
    return textwrap.shorten(pattern.spec, 120, placeholder=" …")


def _terms(pattern: Pattern, extent: Extent) -> tuple[Term, ...]:
    if not extent.queries or not extent.keys:
        return ()
    form = normal_form(pattern, extent)
    if form.rest is None:
        return tuple(_term(clause, len(extent.keys)) for clause in form.clauses)
    size = _block_size(pattern.grain)
    # What has to be gone over in blocks anyway takes along what nearly is blocks: BigBird's window and global blocks
    # beside its random ones. One launch then does the work of three, and no partial softmax goes through memory.
    if size >= USUAL_BLOCK and _nearly_blocks(form.clauses, extent, size):
        return tuple(_blocks(pattern, extent, size))
    return *(_term(clause, len(extent.keys)) for clause in form.clauses), *_blocks(form.rest, extent, size)


def _block_size(grain: int | None) -> int:
    """A power of two, as kernels want it; a divisor of the grain where one is large enough: its blocks are whole."""
    if grain is None:
        return USUAL_BLOCK
    whole = math.gcd(grain, LARGEST_BLOCK)
    return whole if whole >= SMALLEST_BLOCK else min(max(1 << grain.bit_length() - 1, SMALLEST_BLOCK), USUAL_BLOCK)


def _nearly_blocks(clauses: tuple[Clause, ...], extent: Extent, size: int) -> bool:
    """Whether the blocks that the clauses touch hold less than twice their pairs, and no band is wide.

    A wide band runs faster as one: its tiles need no table, and no mask but at its two ends.
    """
    bands = (clause.offsets for clause in clauses if clause.keys is None and clause.queries is None)
    if any(band.high - band.low >= WIDEST_BAND * size for band in bands):
        return False
    touched = sum(_touched(clause, extent, size) for clause in clauses)
    return touched < 2 * sum(count_clause(clause, extent) for clause in clauses) or not clauses


def _touched(clause: Clause, extent: Extent, size: int) -> int:
    """Pairs in the blocks where a query, a key and a distance of the clause meet: all that may hold a pair."""
    first = np.arange(0, len(extent.queries), size)
    last = np.minimum(first + size, len(extent.queries)) - 1
    low = np.clip((extent.queries.start + first - clause.offsets.high) // size, 0, None)
    high = np.clip((extent.queries.start + last - clause.offsets.low) // size, -1, -(-len(extent.keys) // size) - 1)
    widths = _per_block(np.ones(len(extent.keys), bool), size)
    if clause.keys is not None:
        widths = widths * (_per_block(clause.keys, size) > 0)
    heights = _per_block(np.ones(len(extent.queries), bool), size)
    if clause.queries is not None:
        heights = heights * (_per_block(clause.queries, size) > 0)
    before = np.append(0, widths.cumsum())
    return int((heights * (before[np.maximum(high + 1, low)] - before[low])).sum())


def _per_block(members: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """How many members each block of places has."""
    return np.add.reduceat(members, np.arange(0, len(members), size), dtype=np.int64)


def _differ_in_blocks_alone(a: HeadGroup, b: HeadGroup) -> bool:
    """Whether one launch can serve both: random blocks drawn for each head, say, beside one window."""
    if len(a.terms) != len(b.terms) or not any(isinstance(term, Blocks) for term in a.terms):
        return False
    return all(_same(*pair) for pair in zip(a.terms, b.terms, strict=True))


def _same(a: Term, b: Term) -> bool:
    """Whether the terms are equal, or blocks of equal size."""
    if isinstance(a, Blocks) or isinstance(b, Blocks):
        return isinstance(a, Blocks) and isinstance(b, Blocks) and a.size == b.size
    return type(a) is type(b) and all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)
    )


def _joined(groups: list[HeadGroup]) -> HeadGroup:
    """One group of heads that differ in blocks alone; each distinct pattern becomes one layout."""
    whole = groups[0]
    if not whole.terms or not isinstance(whole.terms[-1], Blocks):
        return whole
    by_pattern = {group.pattern: group.terms[-1] for group in groups}
    numbers = {pattern: number for number, pattern in enumerate(by_pattern)}
    layouts = np.concatenate([np.full(group.last - group.first, numbers[group.pattern]) for group in groups])
    blocks = _stacked([term for term in by_pattern.values() if isinstance(term, Blocks)], layouts)
    members = [(group.pattern, group.last - group.first) for group in groups]
    pattern = whole.pattern if len(by_pattern) == 1 else PerHead(members)
    return HeadGroup(whole.first, groups[-1].last, pattern, (*whole.terms[:-1], blocks))


def _stacked(parts: list[Blocks], layouts: NDArray[np.int64]) -> Blocks:
    """Blocks of one layout each as one term; equal masks are kept once."""
    size, known = parts[0].size, dict[bytes, int]()
    starts, tile, end = [], [], 0
    for part in parts:
        numbers = [known.setdefault(mask.tobytes(), len(known)) for mask in part.tiles]
        tile.append(np.array([*numbers, -1])[part.tile])  # -1 is the last of them
        starts.append(part.starts + end)
        end += len(part.columns)
    columns = np.concatenate([part.columns for part in parts])
    tiles = np.frombuffer(b"".join(known), bool).reshape(-1, size, size).copy()  # one that torch may write to
    return Blocks(size, layouts, np.concatenate(starts), columns, np.concatenate(tile), tiles)


def _term(clause: Clause, length: int) -> Term:
    keys = None if clause.keys is None else np.flatnonzero(clause.keys)
    if clause.queries is not None:
        return Rows(np.flatnonzero(clause.queries), keys, clause.offsets, clause.documents)
    if keys is None and clause.offsets.on_step:
        return Band(clause.offsets, clause.documents)
    return Columns(np.arange(length) if keys is None else keys, clause.offsets, clause.documents)


def _blocks(pattern: Pattern, extent: Extent, size: int) -> list[Blocks]:
    found = cover(pattern, extent, size)
    if not len(found.rows):
        return []
    rows = -(-len(extent.queries) // size)
    starts = np.searchsorted(found.rows, np.arange(rows + 1))
    return [Blocks(size, np.zeros(1, np.int64), starts[None], found.columns, found.tile, found.tiles)]


def _distances(offsets: Offsets) -> str:
    before = (
        f"{offsets.high:,} before" if offsets.high > 0 else "itself" if not offsets.high else f"{-offsets.high:,} after"
    )
    after = f"{-offsets.low:,} after" if offsets.low < 0 else "itself" if not offsets.low else f"{offsets.low:,} before"
    return f"from {before} to {after}"


def _packing(documents: tuple[int, ...] | None) -> str:
    return "" if documents is None else f", within each of {len(documents) - 1:,} documents"
