"""An explicit choice of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer


@dataclass(frozen=True, repr=False)
class Blocks(Pattern):
    """Query block `i` sees key block `j` where `allowed[i][j]`; nothing is seen outside the table.

    `allowed` is a rectangle of bools, or rows of "0" and "1".

    >>> Blocks(2, ["10", "11"]).dense_mask(4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]

    Raises:
        ValueError: `block` is no positive integer, or `allowed` is no rectangle of bools.
    """

    block: int
    allowed: Sequence[str] | Sequence[Sequence[bool]] | NDArray[np.bool_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", require_integer("Blocks", "block", self.block, least=1))
        object.__setattr__(self, "allowed", _rows(self.allowed))

    @cached_property
    def _table(self) -> Bools:
        return np.array([[bit == "1" for bit in row] for row in self.allowed])

    @cached_property
    def _sums(self) -> NDArray[np.int64]:
        """How many allowed blocks lie above and to the left of each corner (a summed-area table)."""
        return np.pad(self._table.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    @property
    def grain(self) -> int:
        return self.block

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        i, j = np.asarray(q) // self.block, np.asarray(k) // self.block
        rows, columns = self._table.shape
        inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
        return inside & self._table[np.clip(i, 0, rows - 1), np.clip(j, 0, columns - 1)]

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        top, bottom, left, right = (p // self.block for p in (q_first, q_last, k_first, k_last))
        rows, columns = self._table.shape
        i0, i1 = np.clip(top, 0, rows), np.clip(bottom + 1, 0, rows)
        j0, j1 = np.clip(left, 0, columns), np.clip(right + 1, 0, columns)
        count = self._sums[i1, j1] - self._sums[i0, j1] - self._sums[i1, j0] + self._sums[i0, j0]
        return count > 0, count == (bottom - top + 1) * (right - left + 1)


def _rows(allowed: Sequence | NDArray[np.bool_]) -> tuple[str, ...]:
    """Rows of "0" and "1" from any table of bools."""
    try:
        rows = tuple(row if isinstance(row, str) else "".join("01"[bool(cell)] for cell in row) for row in allowed)
    except (TypeError, ValueError):
        rows = ()
    if not rows or not rows[0] or any(len(row) != len(rows[0]) or set(row) - {"0", "1"} for row in rows):
        raise ValueError(
            f'Blocks: allowed is {allowed!r}; give a rectangle of bools, or rows of "0" and "1" of equal length'
        )
    return rows
