"""A pattern over what is left of a longer sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer
from .clauses import Clause, Extent, positions
from .normal_form import normal_form
from .offsets import Offsets


@dataclass(frozen=True, repr=False)
class Excerpt(Pattern):
    """The pattern over a sequence of which some keys are gone: those at `kept` stand first, then all from `start` on.

    Queries and keys are numbered as they stand in the excerpt; what sees what is decided by where they stood.

    >>> from gossamer import Causal, Sinks, Window
    >>> Excerpt(Causal() & (Window(2) | Sinks(1)), kept=[0], start=7).dense_mask(2, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]

    Raises:
        ValueError: The positions kept do not ascend, or one is not before `start`.
    """

    pattern: Pattern
    kept: Sequence[int]
    start: int

    def __post_init__(self) -> None:
        start = require_integer("Excerpt", "start", self.start, least=0)
        kept = tuple(require_integer("Excerpt", "a kept position", position, least=0) for position in self.kept)
        if any(a >= b for a, b in pairwise((*kept, start))):
            raise ValueError(f"Excerpt: kept is {kept!r}; give ascending positions before start={start}")
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "start", start)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.pattern,)

    def for_head(self, head: int) -> Pattern:
        return replace(self, pattern=self.pattern.for_head(head))

    @cached_property
    def _kept(self) -> NDArray[np.int64]:
        return np.array(self.kept, np.int64)

    def _place(self, index: ArrayLike) -> NDArray[np.int64]:
        """Where each number of the excerpt stood."""
        index, count = np.asarray(index), len(self._kept)
        ran = self.start + index - count
        return np.where(index < count, self._kept[np.clip(index, 0, count - 1)], ran) if count else ran

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        return self.pattern.allows(self._place(q), self._place(k))

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        return self.pattern.bounds(*map(self._place, (q_first, q_last, k_first, k_last)))

    def clauses(self, extent: Extent) -> tuple[Clause, ...] | None:
        """Those of the keys that run on, with their distances, and one of the kept keys that every query sees."""
        count = len(self._kept)
        if extent.queries.start < count or extent.keys.start or not len(extent.queries):
            return None
        stood = self.start - count
        queries = range(stood + extent.queries.start, stood + extent.queries.stop)
        form = normal_form(self.pattern, Extent(queries, range(self.start, max(stood + extent.keys.stop, self.start))))
        first, last = (np.full(count, position) for position in (queries.start, queries.stop - 1))
        may, must = self.pattern.bounds(first, last, self._kept, self._kept)
        if form.rest is not None or (may & ~must).any():
            return None
        if any(clause.documents is not None and clause.documents[-1] <= self.start for clause in form.clauses):
            return None
        nearest = extent.queries.start - count + 1  # distance in the excerpt of any query from any kept key, at least
        ran = [self._clause(clause, extent, nearest) for clause in form.clauses]
        kept = Clause(Offsets(low=nearest), keys=np.concatenate([must, np.zeros(len(extent.keys) - count, bool)]))
        return (*ran, kept)

    def _clause(self, clause: Clause, extent: Extent, nearest: int) -> Clause:
        """A clause of the keys that run on, which touches none of the kept ones."""
        if clause.documents is not None:
            stood = self.start - len(self._kept)
            clause = replace(clause, documents=tuple(sorted({max(cut - stood, 0) for cut in clause.documents})))
        if clause.keys is None and clause.offsets.high < nearest:
            return clause
        keys = positions(extent.keys) >= len(self._kept)
        if clause.keys is not None:
            keys[len(self._kept) :] = clause.keys
        return replace(clause, keys=keys)
