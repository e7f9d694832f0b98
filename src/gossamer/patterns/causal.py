"""The past and the present."""

from dataclasses import dataclass

from .base import OffsetSet
from .clauses import Clause
from .offsets import Offsets


@dataclass(frozen=True, repr=False)
class Causal(OffsetSet):
    """A query sees itself and every key before it.

    >>> Causal().dense_mask(3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    @property
    def clause(self) -> Clause:
        return Clause(Offsets(low=0))
