"""A sliding window."""

from dataclasses import dataclass

from .base import OffsetSet, require_integer
from .clauses import Clause
from .offsets import Offsets


@dataclass(frozen=True, repr=False)
class Window(OffsetSet):
    """A query sees the keys less than `size` positions away, itself included.

    `Causal() & Window(128)` is exactly 128 keys; `Window(128)` alone is two-sided and has 255.

    >>> (Causal() & Window(2)).dense_mask(4).sum(axis=1).tolist()
    [1, 2, 2, 2]

    Raises:
        ValueError: `size` is no positive integer.
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", require_integer("Window", "size", self.size, least=1))

    @property
    def clause(self) -> Clause:
        return Clause(Offsets(1 - self.size, self.size - 1))
