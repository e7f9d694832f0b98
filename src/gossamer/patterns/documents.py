"""Sequences packed one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer, require_some
from .clauses import Clause, Extent


@dataclass(frozen=True, repr=False)
class Documents(Pattern):
    """A query sees the keys of its own document. Positions behind the last document see nothing.

    >>> (Causal() & Documents([2, 1])).dense_mask(3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]

    Raises:
        ValueError: A length is no positive integer, or there is none.
    """

    lengths: Sequence[int]

    def __post_init__(self) -> None:
        given = require_some("Documents", "lengths", self.lengths)
        lengths = tuple(require_integer("Documents", "a length", length, least=1) for length in given)
        object.__setattr__(self, "lengths", lengths)

    @cached_property
    def _boundaries(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def _number(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The document of each position; -1 before the first and `len(lengths)` behind the last."""
        return np.searchsorted(self._boundaries, positions, "right") - 1

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        number = self._number(k)
        return (self._number(q) == number) & (number >= 0) & (number < len(self.lengths))

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        first, last = (self._number(p) for p in (np.minimum(q_first, k_first), np.maximum(q_last, k_last)))
        shared_first = np.maximum(np.maximum(self._number(q_first), self._number(k_first)), 0)
        shared_last = np.minimum(np.minimum(self._number(q_last), self._number(k_last)), len(self.lengths) - 1)
        inside = (first >= 0) & (last < len(self.lengths))
        return shared_first <= shared_last, (first == last) & inside

    def clauses(self, extent: Extent) -> tuple[Clause, ...]:
        return (Clause(documents=tuple(self._boundaries.tolist())),)
