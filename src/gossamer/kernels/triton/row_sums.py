"""Gradients of keys as sums of rows: what comes to a key from single queries is written first, and then summed.

Rows are summed in float32. Of bfloat16 they are written in bfloat16, which has float32's range; of float16 in float32,
or small ones would vanish. The workspace is bounded, so there are passes over the queries, and over the key heads where
not all fit at once. A key's owner adds the rows of its list in the order of the queries, one pass after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inverse_lists import InverseLists

WORKSPACE = 2**29
"""Bytes of rows before they are summed."""
LEAST = 256
"""Queries of a pass, where all key heads do not fit at once: with fewer, sums would be read and written too often."""


class Lists(NamedTuple):
    """`InverseLists` as kernels read them, with the room that a run has for entries."""

    starts: Tensor
    entries: Tensor
    room: int

    @staticmethod
    def of(lists: InverseLists) -> Lists:
        return Lists(*lists, lists.entries.shape[2])


@dataclass(frozen=True)
class Pass:
    """Queries `first … last - 1`, so many key heads at a time."""

    first: int
    last: int
    together: int
    every: int

    def lanes(self) -> Iterator[tuple[int, int]]:
        """(first key head, how many) of each part."""
        for lane in range(0, self.every, self.together):
            yield lane, min(self.together, self.every - lane)


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums [B, G, K, D] in float32, of which there may be fewer than named, and the rows that make them."""

    totals: tuple[Tensor | None, ...]
    parts: tuple[Any, ...]
    """[1, lanes, queries · n, D] each, as kernels read them."""
    queries: int
    step: int
    together: int
    runs: int

    @staticmethod
    def of(totals: tuple[Tensor | None, ...], queries: int, size: int, runs: int, dtype: torch.dtype) -> RowSums:
        """Of inputs of a dtype, and rows with room for `size` keys a query, in `runs` runs of the key heads."""
        from ..rows import Matrix

        made = [total for total in totals if total is not None]
        if queries == 0:  # no pass writes anything
            for total in made:
                total.zero_()
        lanes = made[0].shape[0] * made[0].shape[1]
        dtype = dtype if dtype == torch.bfloat16 else torch.float32
        nbytes = dtype.itemsize * size * sum(total.shape[3] for total in made)
        room = WORKSPACE // nbytes  # queries of all key heads together
        step = max(1, min(queries, room, max(LEAST, room // max(lanes, 1))))
        together = max(1, min(lanes, room // step))
        shape = 1, together, step * size
        parts = (None if x is None else x.new_empty(*shape, x.shape[3], dtype=dtype) for x in totals)
        return RowSums(totals, tuple(x if x is None else Matrix.of(x) for x in parts), queries, step, together, runs)

    def passes(self) -> Iterator[Pass]:
        """Passes over the queries."""
        batch, groups = next(total for total in self.totals if total is not None).shape[:2]
        for first in range(0, self.queries, self.step):
            yield Pass(first, min(first + self.step, self.queries), self.together, batch * groups)

    def add(self, lists: InverseLists, lane: int, lanes: int, *, adds: bool) -> None:
        """Writes the sums of some key heads' lists to the totals, or adds them."""
        from ..rows import Matrix
        from .indexed_backward import indexed_sum_rows

        for total, part in zip(self.totals, self.parts, strict=True):
            if total is not None:
                (_, groups, keys, width), columns = total.shape, min(256, up_to_power(total.shape[3], 16))
                constants = {"ADDS": adds, "WIDTH": width, "COLUMNS": columns, "STEP": 4, "num_warps": 1}
                numbers = Lists.of(lists), groups // self.runs, groups, keys, lane
                grid = lanes * keys, -(-width // columns)
                launch(indexed_sum_rows, grid, (part, Matrix.of(total), *numbers), constants)


def up_to_power(count: int, least: int) -> int:
    """The power of two from `count` on."""
    return max(least, 1 << (count - 1).bit_length())


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[object, ...], constants: dict[str, Any]) -> None:
    """Runs as many programs as there are, which may be none."""
    if 0 not in grid:
        kernel[grid](*arguments, **constants)
