"""Walks a plan: a term becomes strips of queries and keys, a strip becomes tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...plan import Band, Blocks, Columns, Plan, Rows

MOST_BIASES = 16
"""Bands need a handful of distinct masks; whatever needs more is cheaper to make again than to keep."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Some places of a sequence, ascending: where they are stored and at which positions they stand."""

    index: slice | NDArray[np.int64]
    positions: NDArray[np.int64]

    @staticmethod
    def run(start: int, length: int, step: int = 1, first: int = 0) -> Axis:
        """Every `step`-th place from `first` of a sequence whose place 0 stands at position `start`."""
        return Axis(slice(first, length, step), np.arange(start + first, start + length, step))

    def chosen(self, index: NDArray[np.int64] | None) -> Axis:
        """The places at `index` of a whole sequence; all of them for None."""
        return self if index is None else Axis(index, self.positions[index])

    def between(self, first: int, last: int) -> Axis:
        """The places at positions `first … last - 1`."""
        low, high = np.searchsorted(self.positions, (first, last))
        if isinstance(self.index, slice):
            start, step = self.index.start, self.index.step or 1
            return Axis(slice(start + int(low) * step, start + int(high) * step, step), self.positions[low:high])
        return Axis(self.index[low:high], self.positions[low:high])

    def take(self, tensor: Tensor) -> Tensor:
        """The axis' places of [..., length, width]: a view for slices, a copy for chosen places."""
        if isinstance(self.index, slice):
            return tensor[..., self.index, :]
        return tensor.index_select(-2, torch.from_numpy(self.index).to(tensor.device))

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Writes back what `take` copied; a view needs no writing."""
        if not isinstance(self.index, slice):
            tensor.index_copy_(-2, torch.from_numpy(self.index).to(tensor.device), values)


@dataclass(frozen=True, eq=False)
class Strip:
    """Queries and keys whose pairs are visible wherever their distance lies in the term's offsets."""

    term: Band | Columns | Rows | Blocks
    queries: Axis
    keys: Axis


@dataclass(frozen=True, eq=False)
class Tile:
    """Some of a strip's queries times some of its keys; `bias` is 0 where visible, -inf elsewhere, None for all 0."""

    queries: slice
    keys: slice | Tensor
    q_positions: Tensor
    k_positions: Tensor
    bias: Tensor | None
    first: bool
    """No earlier tile of the strip holds these queries."""


@dataclass(frozen=True)
class TileSize:
    """Queries and keys of a tile, at most; and where and as what its bias is made."""

    queries: int
    keys: int
    device: torch.device
    dtype: torch.dtype


def strips(term: Band | Columns | Rows | Blocks, plan: Plan) -> Iterator[Strip]:
    """The term as strips. A dilated band falls into one strip for each residue, packing into one a document."""
    offset, queries, keys = plan.extent.queries.start, plan.queries, plan.keys
    whole = Strip(term, Axis.run(offset, queries), Axis.run(0, keys))
    if isinstance(term, Blocks):
        yield whole
        return
    if isinstance(term, Band):
        step = term.offsets.step
        whole_strips = [
            Strip(term, Axis.run(offset, queries, step, (residue - offset) % step), Axis.run(0, keys, step, residue))
            for residue in range(min(step, keys))
        ]
    else:
        rows = term.queries if isinstance(term, Rows) else None
        whole_strips = [Strip(term, whole.queries.chosen(rows), whole.keys.chosen(term.keys))]
    for strip in whole_strips:
        yield from _packed(strip) if term.documents else [strip]


def tiles(strip: Strip, size: TileSize) -> Iterator[Tile]:
    """The strip's tiles; those that hold no visible pair are left out."""
    if isinstance(strip.term, Blocks):
        yield from _block_tiles(strip.term, strip, size)
    else:
        yield from _offset_tiles(strip, size)


def _packed(strip: Strip) -> Iterator[Strip]:
    for first, last in pairwise(strip.term.documents):
        part = Strip(strip.term, strip.queries.between(first, last), strip.keys.between(first, last))
        if len(part.queries.positions) and len(part.keys.positions):
            yield part


def _offset_tiles(strip: Strip, size: TileSize) -> Iterator[Tile]:
    offsets, q, k = strip.term.offsets, strip.queries.positions, strip.keys.positions
    q_tensor, k_tensor = (torch.from_numpy(positions).to(size.device) for positions in (q, k))
    regular = isinstance(strip.queries.index, slice) and isinstance(strip.keys.index, slice)
    biases: dict[tuple[int, int, int], Tensor] = {}
    for first in range(0, len(q), size.queries):
        last = min(first + size.queries, len(q))
        low = np.searchsorted(k, q[first] - offsets.high, "left")
        high = np.searchsorted(k, q[last - 1] - offsets.low, "right")
        # From the end, so that all but the earliest tile lie the same way to the diagonal and share their biases.
        for end in range(int(high), int(low), -size.keys):
            start = max(int(low), end - size.keys)
            rows, columns = slice(first, last), slice(start, end)
            q_positions, k_positions = q_tensor[rows], k_tensor[columns]
            bias = None
            if not _all_visible(offsets, q[first], q[last - 1], k[start], k[end - 1]):
                key = (int(k[start] - q[first]), last - first, end - start)
                bias = biases.get(key) if regular else None
                if bias is None:
                    bias = _bias(offsets.holds(q_positions[:, None] - k_positions[None, :]), size.dtype)
                    if len(biases) < MOST_BIASES:
                        biases[key] = bias
            yield Tile(rows, columns, q_positions, k_positions, bias, first=end == high)


def _all_visible(offsets, q_first: int, q_last: int, k_first: int, k_last: int) -> bool:
    return offsets.dense and offsets.low <= q_first - k_last and q_last - k_first <= offsets.high


def _block_tiles(term: Blocks, strip: Strip, size: TileSize) -> Iterator[Tile]:
    queries, keys = len(strip.queries.positions), len(strip.keys.positions)
    q_tensor, k_tensor = (torch.from_numpy(axis.positions).to(size.device) for axis in (strip.queries, strip.keys))
    masks = torch.from_numpy(term.tiles).to(size.device)
    most = max(1, size.keys // term.size)
    for row, (begin, end) in enumerate(pairwise(term.starts.tolist())):
        rows = slice(row * term.size, min((row + 1) * term.size, queries))
        for first in range(begin, end, most):
            some = slice(first, min(first + most, end))
            columns = (term.columns[some, None] * term.size + np.arange(term.size)).ravel()
            columns = torch.from_numpy(columns[columns < keys]).to(size.device)
            bias = _block_bias(masks, term.tile[some], rows.stop - rows.start, len(columns), size.dtype)
            yield Tile(rows, columns, q_tensor[rows], k_tensor[columns], bias, first=first == begin)


def _block_bias(masks: Tensor, tile: NDArray[np.int64], rows: int, columns: int, dtype: torch.dtype) -> Tensor | None:
    """The biases of blocks side by side, cut to the rows and columns that exist."""
    if (tile < 0).all():
        return None
    full = torch.ones_like(masks[0])
    visible = torch.cat([full if index < 0 else masks[index] for index in tile.tolist()], dim=1)
    return _bias(visible[:rows, :columns], dtype)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
