"""A pattern that begins anew in each of several packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern
from .clauses import Clause, Extent, Members
from .documents import Documents
from .normal_form import normal_form


@dataclass(frozen=True, repr=False)
class Packed(Pattern):
    """The pattern within each of several sequences that are packed one after the other, counted from its own start.

    `pattern & Documents(lengths)` counts from the start of the pack: there, sinks and strides belong to the first
    document. Here every document has its own.

    >>> from gossamer import Causal, Sinks
    >>> Packed(Causal() & Sinks(1), [2, 2]).dense_mask(4).astype(int).tolist()
    [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]

    Raises:
        ValueError: A length is no positive integer, or there is none.
    """

    pattern: Pattern
    lengths: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", Documents(self.lengths).lengths)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.pattern,)

    def for_head(self, head: int) -> Pattern:
        return replace(self, pattern=self.pattern.for_head(head))

    @cached_property
    def _documents(self) -> Documents:
        return Documents(self.lengths)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *self.lengths[:-1]])

    def _start(self, position: ArrayLike) -> NDArray[np.int64]:
        """Where the document of each position begins; the first and the last one's where it lies in none."""
        return self._starts[np.clip(np.searchsorted(self._starts, position, "right") - 1, 0, None)]

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        inside = self._documents.allows(q, k)
        return inside & self.pattern.allows(np.asarray(q) - self._start(q), np.asarray(k) - self._start(k))

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        """Exact as the pattern's own where the queries, or the keys, lie in one document."""
        may, within_one = self._documents.bounds(q_first, q_last, k_first, k_last)
        alike_q, alike_k = self._start(q_first) == self._start(q_last), self._start(k_first) == self._start(k_last)
        start = self._start(np.where(alike_k, k_first, q_first))
        last = np.append(self._starts[1:], sum(self.lengths))[np.searchsorted(self._starts, start)] - 1 - start
        q0, q1, k0, k1 = (np.clip(position - start, 0, last) for position in (q_first, q_last, k_first, k_last))
        inner_may, inner_must = self.pattern.bounds(q0, q1, k0, k1)
        return may & (inner_may | ~(alike_q | alike_k)), within_one & inner_must

    def clauses(self, extent: Extent) -> tuple[Clause, ...] | None:
        longest = min(max(self.lengths), max(extent.queries.stop, extent.keys.stop, 0))  # no more of it is looked at
        form = normal_form(self.pattern, Extent.aligned(longest, longest))
        if form.rest is not None:
            return None
        if any(clause.documents is not None and clause.documents[-1] < longest for clause in form.clauses):
            return None  # what lies behind the last of a sequence's own documents is in none
        bounds = tuple([0, *np.cumsum(self.lengths).tolist()])
        return tuple(
            Clause(
                clause.offsets,
                self._in_every_document(clause.keys, extent.keys),
                self._in_every_document(clause.queries, extent.queries),
                bounds if clause.documents is None else self._cut(clause.documents, bounds),
            )
            for clause in form.clauses
        )

    def _in_every_document(self, members: Members, run: range) -> Members:
        """The members of one sequence as members of every document, for the positions of `run`."""
        if members is None:
            return None
        packed = np.concatenate([members[:length] for length in self.lengths])
        found = np.zeros(len(run), bool)
        first, last = max(run.start, 0), min(run.stop, len(packed))
        found[first - run.start : max(last - run.start, 0)] = packed[first:last]
        return found

    @staticmethod
    def _cut(inner: tuple[int, ...], bounds: tuple[int, ...]) -> tuple[int, ...]:
        """The documents of a pattern that has some itself, within each of these."""
        cuts = {start + cut for start, end in pairwise(bounds) for cut in inner if start + cut < end}
        return tuple(sorted(cuts | set(bounds)))
