"""A pattern between some queries and some keys of a longer sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer, require_some
from .clauses import Clause, Extent
from .normal_form import normal_form
from .offsets import UNBOUNDED, Offsets

Run = tuple[int, int, int]
"""Positions `first, first + step, …` below `stop`: (first, stop, step)."""


@dataclass(frozen=True, repr=False)
class Section(Pattern):
    """The pattern between the queries that stood at some positions and the keys that stood at some.

    Both are given as runs (first, stop, step) of ascending positions, and numbered as they stand in the section, of
    which the last query is at the last key. What sees what is decided by where they stood: so a process that holds a
    part of a sequence attends to it, or to what it was sent of other parts.

    >>> from gossamer import Causal, Strided, Window
    >>> section = Section(Causal() & (Window(2) | Strided(3)), queries=[(6, 8, 1)], keys=[(0, 6, 3), (5, 8, 1)])
    >>> section.dense_mask(2, 5).astype(int).tolist()
    [[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]]

    Raises:
        ValueError: A run is empty or no (first, stop, step), or positions do not ascend.
    """

    pattern: Pattern
    queries: Sequence[Run]
    keys: Sequence[Run]

    def __post_init__(self) -> None:
        for name in ("queries", "keys"):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.pattern,)

    def for_head(self, head: int) -> Pattern:
        return replace(self, pattern=self.pattern.for_head(head))

    @cached_property
    def _stood(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of all queries and of all keys."""
        return places(self.queries), places(self.keys)

    def _places(self, q: ArrayLike, k: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], Bools]:
        """Where queries and keys of these numbers stood, and whether there are such."""
        queries, keys = self._stood
        row, column = np.subtract(q, len(keys) - len(queries)), np.asarray(k)
        there = (row >= 0) & (row < len(queries)) & (column >= 0) & (column < len(keys))
        return queries[np.clip(row, 0, len(queries) - 1)], keys[np.clip(column, 0, len(keys) - 1)], there

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        query, key, there = self._places(q, k)
        return there & self.pattern.allows(query, key)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        (low_q, low_k, starts), (high_q, high_k, ends) = self._places(q_first, k_first), self._places(q_last, k_last)
        may, must = self.pattern.bounds(low_q, high_q, low_k, high_k)
        return may, must & starts & ends

    def clauses(self, extent: Extent) -> tuple[Clause, ...] | None:
        """Those of the keys in the longest unbroken run, at the distances they have here; others must fit in.

        Others are keys that a clause holds for at their old and their new distance from every query, or at neither.
        """
        queries, keys = self._stood
        if extent != Extent.aligned(len(queries), len(keys)) or len(self.queries) > 1 or self.queries[0][2] > 1:
            return None
        first, stop = int(queries[0]), int(queries[-1]) + 1
        hull = range(int(keys[0]), int(keys[-1]) + 1)
        form = normal_form(self.pattern, Extent(range(first, stop), hull))
        if form.rest is not None:
            return None
        run = _Longest.of(self.keys)
        moved = (extent.queries.start - first) - (run.number - run.first)  # a distance here, less the distance there
        made = [_moved(clause, keys, run, moved, range(first, stop)) for clause in form.clauses]
        return None if None in made else tuple(clause for clause in made if clause is not None)


@dataclass(frozen=True)
class _Longest:
    """The longest run of neighbouring positions, and the number of its first key among all keys."""

    first: int
    stop: int
    number: int

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Longest:
        number, longest = 0, cls(runs[0][0], runs[0][0], 0)
        for first, stop, step in runs:
            if step == 1 and stop - first > longest.stop - longest.first:
                longest = cls(first, stop, number)
            number += len(range(first, stop, step))
        return longest


def _moved(clause: Clause, keys: NDArray[np.int64], run: _Longest, moved: int, queries: range) -> Clause | None:
    """The clause over the section's numbers; None where it has no such form."""
    offsets = clause.offsets
    if (offsets.step > 1 and moved % offsets.step) or (clause.documents is not None and moved):
        return None
    here = replace(offsets, low=_plus(offsets.low, moved), high=_plus(offsets.high, moved))
    members = None if clause.keys is None else clause.keys[keys - keys[0]]
    others = np.ones(len(keys), bool) if members is None else members.copy()
    others[run.number : run.number + run.stop - run.first] = False
    there = _meets(offsets, queries, keys[others])
    first = queries.start + moved + run.number - run.first  # the number of the first query
    now = _meets(here, range(first, first + len(queries)), np.flatnonzero(others))
    if any((may & ~must).any() for may, must in (there, now)) or (there[0] != now[0]).any():
        return None
    documents = clause.documents
    if documents is not None:
        if documents[-1] <= keys[0]:
            return None
        documents = tuple(sorted({0, *np.searchsorted(keys, documents).tolist()}))
    return Clause(here, members, clause.queries, documents)


def _meets(offsets: Offsets, queries: range, keys: NDArray[np.int64]) -> tuple[Bools, Bools]:
    """(may, must): whether some, and whether every, query is at one of the distances from each key."""
    return offsets.bounds(queries.start - keys, queries.stop - 1 - keys)


def _plus(distance: int, moved: int) -> int:
    return distance if abs(distance) >= UNBOUNDED else distance + moved


def places(runs: Iterable[Run]) -> NDArray[np.int64]:
    """The positions of some runs.

    >>> places([(0, 6, 3), (7, 9, 1)]).tolist()
    [0, 3, 7, 8]
    """
    return np.concatenate([np.empty(0, np.int64), *(np.arange(*run) for run in runs)]).astype(np.int64)


def within(runs: tuple[Run, ...], first: int, stop: int) -> tuple[Run, ...]:
    """The positions `first … stop - 1` of some runs, counted from `first`.

    >>> within(((0, 10, 4), (12, 20, 1)), 3, 15)
    ((1, 6, 4), (9, 12, 1))
    """
    found = []
    for start, end, step in runs:
        start += max(-(-(first - start) // step), 0) * step
        end = min(end, stop)
        if start < end:
            last = start + (end - 1 - start) // step * step
            found.append((start - first, last + 1 - first, step))
    return tuple(found)


def counted(runs: tuple[Run, ...]) -> int:
    """How many positions some runs have."""
    return sum(len(range(*run)) for run in runs)


def runs_of(positions: NDArray[np.int64]) -> tuple[Run, ...]:
    """Ascending positions as a few runs: neighbours at equal distances share one.

    >>> runs_of(np.array([0, 3, 7, 8, 9]))
    ((0, 4, 3), (7, 10, 1))
    """
    runs, start, gaps = list[Run](), 0, np.diff(positions)
    changes = np.flatnonzero(np.diff(gaps)) + 1  # number of each gap that is unlike the one before it
    while start < len(positions):
        if start == len(positions) - 1:
            runs.append((int(positions[start]), int(positions[start]) + 1, 1))
            break
        later = changes[np.searchsorted(changes, start, "right") :]
        end = int(later[0]) if len(later) else len(gaps)
        runs.append((int(positions[start]), int(positions[end]) + 1, int(gaps[start])))
        start = end + 1
    return tuple(runs)


def _checked(name: str, given: object) -> tuple[Run, ...]:
    runs = tuple(_run(name, run) for run in require_some("Section", name, given))
    ends = [(first, first + (stop - first - 1) // step * step) for first, stop, step in runs]
    if any(before >= first for (_, before), (first, _) in pairwise(ends)):
        raise ValueError(f"Section: {name} is {runs!r}; give runs whose positions ascend")
    return runs


def _run(name: str, given: object) -> Run:
    numbers = tuple(given) if isinstance(given, list | tuple) else ()
    if len(numbers) != 3:
        raise ValueError(f"Section: a run of {name} is {given!r}; give (first, stop, step)")
    first, stop = (require_integer("Section", f"an end of {name}", number, least=0) for number in numbers[:2])
    step = require_integer("Section", f"a step of {name}", numbers[2], least=1)
    if stop <= first:
        raise ValueError(f"Section: a run of {name} is {given!r}; give one with at least one position")
    return first, stop, step
