"""The closed form of regular patterns: unions of (distances × keys × queries × documents)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .offsets import Irregular, Offsets

Members = NDArray[np.bool_] | None
"""A subset of the extent's positions, one bool each; None stands for all of them."""


@dataclass(frozen=True)
class Extent:
    """The positions that a problem covers."""

    queries: range
    keys: range

    @staticmethod
    def aligned(queries: int, keys: int) -> Extent:
        """The last query stands at the last key, so that decoding needs no offset."""
        if queries < 0 or keys < 0:
            raise ValueError(f"queries is {queries} and keys is {keys}; lengths are at least 0")
        return Extent(range(keys - queries, keys), range(keys))

    @property
    def T(self) -> Extent:
        return Extent(self.keys, self.queries)

    @property
    def offsets(self) -> Offsets:
        """Every distance that occurs."""
        return Offsets(self.queries.start - self.keys.stop + 1, self.queries.stop - 1 - self.keys.start)


def positions(run: range) -> NDArray[np.int64]:
    """A run of positions as an array."""
    return np.arange(run.start, run.stop)


@dataclass(frozen=True, eq=False)
class Clause:
    """Pairs whose distance, key, query and document all belong to the given sets."""

    offsets: Offsets = field(default_factory=Offsets)
    keys: Members = None
    queries: Members = None
    documents: tuple[int, ...] | None = None
    """Boundaries `(0, end of the first, end of the second, ...)`; a query sees only its own document."""

    @property
    def empty(self) -> bool:
        return self.offsets.empty or any(m is not None and not m.any() for m in (self.keys, self.queries))

    @property
    def T(self) -> Clause:
        return Clause(self.offsets.transposed(), self.queries, self.keys, self.documents)

    def clip(self, extent: Extent) -> Clause:
        """The same pairs, with distances that cannot occur cut off and full sets written as None."""
        return Clause(
            self.offsets & extent.offsets,
            _whole_as_none(self.keys),
            _whole_as_none(self.queries),
            self.documents,
        )

    def __and__(self, other: Clause) -> Clause:
        """Pairs in both. Raises Irregular where the result is no clause."""
        return Clause(
            self.offsets & other.offsets,
            _both(self.keys, other.keys),
            _both(self.queries, other.queries),
            _both_documents(self.documents, other.documents),
        )

    def __sub__(self, other: Clause) -> list[Clause]:
        """Pairs in this clause but not in `other`, as disjoint clauses. Raises Irregular where there are none such."""
        rest = [replace(self, offsets=offsets) for offsets in self.offsets - other.offsets]
        shared = replace(self, offsets=self.offsets & other.offsets)
        rest.append(replace(shared, keys=_without(shared.keys, other.keys)))
        shared = replace(shared, keys=_both(shared.keys, other.keys))
        rest.append(replace(shared, queries=_without(shared.queries, other.queries)))
        shared = replace(shared, queries=_both(shared.queries, other.queries))
        if not shared.empty and other.documents not in (None, self.documents):
            raise Irregular("pairs outside a set of documents")
        return [clause for clause in rest if not clause.empty]


ALL = Clause()

MOST_CLAUSES = 64
"""An expression that unfolds into more clauses is cheaper to look at block by block."""


def few(clauses: list[Clause]) -> list[Clause]:
    """The same clauses. Raises Irregular where there are too many."""
    if len(clauses) > MOST_CLAUSES:
        raise Irregular(f"{len(clauses)} clauses")
    return clauses


def disjoint(clauses: list[Clause]) -> list[Clause]:
    """Clauses that cover the same pairs, each exactly once, the most regular first. Raises Irregular where they
    become too many."""
    kept: list[Clause] = []
    for clause in sorted(clauses, key=_irregularity):
        pieces = [clause]
        for earlier in kept:
            pieces = few([rest for piece in pieces for rest in piece - earlier])
        for piece in pieces:
            _join(kept, piece)
        few(kept)
    return kept


def _irregularity(clause: Clause) -> tuple[bool, bool, bool, int]:
    width = clause.offsets.high - clause.offsets.low
    return clause.queries is not None, clause.keys is not None, not clause.offsets.dense, -width


def _join(kept: list[Clause], piece: Clause) -> None:
    """Adds `piece` to `kept`, merged with a clause that differs from it in one set only, where there is one."""
    for index, other in enumerate(kept):
        merged = _merged(other, piece)
        if merged is not None:
            del kept[index]
            return _join(kept, merged)
    kept.append(piece)


def _merged(a: Clause, b: Clause) -> Clause | None:
    same_offsets, same_documents = a.offsets == b.offsets, a.documents == b.documents
    same_keys, same_queries = _same(a.keys, b.keys), _same(a.queries, b.queries)
    if not same_documents or same_offsets + same_keys + same_queries < 2:
        return None
    if not same_keys:
        return replace(a, keys=_either(a.keys, b.keys))
    if not same_queries:
        return replace(a, queries=_either(a.queries, b.queries))
    low, high = sorted((a.offsets, b.offsets), key=lambda offsets: offsets.low)
    if low.dense and high.dense and low.high + 1 == high.low:
        return replace(a, offsets=Offsets(low.low, high.high))
    return None


def _both(a: Members, b: Members) -> Members:
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _either(a: Members, b: Members) -> Members:
    return None if a is None or b is None else _whole_as_none(a | b)


def _without(a: Members, b: Members) -> Members:
    """Members of `a` that are not in `b`; an empty set where there are none."""
    if b is None:
        return np.zeros(1 if a is None else len(a), dtype=bool)
    return ~b if a is None else a & ~b


def _same(a: Members, b: Members) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _whole_as_none(members: Members) -> Members:
    return None if members is None or members.all() else members


def _both_documents(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Documents cut at the boundaries of both, within the span that both cover."""
    if a is None or b is None or a == b:
        return b if a is None else a
    end = min(a[-1], b[-1])
    return tuple(sorted({cut for cut in (*a, *b) if cut <= end}))
