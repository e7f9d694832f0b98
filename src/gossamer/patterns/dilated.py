"""A sliding window with gaps (Longformer, arXiv 2004.05150, section 3.1)."""

from dataclasses import dataclass

from .base import OffsetSet, require_integer
from .clauses import Clause
from .offsets import UNBOUNDED, Offsets


@dataclass(frozen=True, repr=False)
class Dilated(OffsetSet):
    """A query sees every `step`-th key around it, fewer than `size` steps away, itself included.

    `Causal() & Dilated(64, step=4)` is exactly 64 keys that reach 252 positions back.

    >>> Dilated(2, step=3).dense_mask(7)[3].astype(int).tolist()
    [1, 0, 0, 1, 0, 0, 1]

    Raises:
        ValueError: `size` or `step` is no positive integer.
    """

    size: int
    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", require_integer("Dilated", "size", self.size, least=1))
        object.__setattr__(self, "step", require_integer("Dilated", "step", self.step, least=1))

    @property
    def clause(self) -> Clause:
        reach = min((self.size - 1) * self.step, UNBOUNDED)
        return Clause(Offsets(-reach, reach, self.step))
