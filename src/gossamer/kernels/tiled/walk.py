"""Walks a plan: a term becomes strips of queries and keys, a strip becomes tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...plan import Band, Blocks, Columns, Offsets, Plan, Rows, Term

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


@dataclass(frozen=True, eq=False)
class Strip:
    """Some queries and keys of the problem, and the tiles that cover their visible pairs."""

    queries: Axis
    keys: Axis
    tiles: Iterator[Tile]


@dataclass(frozen=True)
class Ends:
    """Positions before `first` and from `last` on see nothing and are not seen."""

    first: int
    last: int


@dataclass(frozen=True, eq=False)
class KnownRuns:
    """Query `i` sees keys `start[i] … stop[i] - 1` of a plan that shows everything; neither falls."""

    start: NDArray[np.int32]
    stop: NDArray[np.int32]


Sight = Ends | KnownRuns
"""What one sequence sees of a plan."""


def walk(term: Term, plan: Plan, size: TileSize, sight: Sight | None) -> Iterator[Strip]:
    """The term as strips. A dilated band falls into one strip for each residue, packing into one for each document."""
    queries, keys = Axis.run(plan.extent.queries.start, plan.queries), Axis.run(0, plan.keys)
    if isinstance(sight, KnownRuns):
        yield Strip(queries, keys, _run_tiles(sight, queries, keys, size))
    elif isinstance(term, Blocks):
        yield Strip(queries, keys, _block_tiles(term, queries, keys, size, sight))
    else:
        ends = None if sight is None else (sight.first, sight.last)
        for rows, columns in _packed(term.documents, _packed(ends, _axes(term, plan, queries, keys))):
            yield Strip(rows, columns, _offset_tiles(term.offsets, rows, columns, size))


def _axes(term: Band | Columns | Rows, plan: Plan, queries: Axis, keys: Axis) -> Iterator[tuple[Axis, Axis]]:
    if not isinstance(term, Band):
        yield queries.chosen(term.queries if isinstance(term, Rows) else None), keys.chosen(term.keys)
        return
    start, step = plan.extent.queries.start, term.offsets.step
    for residue in range(min(step, plan.keys)):
        first = (residue - start) % step
        yield Axis.run(start, plan.queries, step, first), Axis.run(0, plan.keys, step, residue)


def _packed(documents: tuple[int, ...] | None, axes: Iterator[tuple[Axis, Axis]]) -> Iterator[tuple[Axis, Axis]]:
    """The axes cut at the documents' boundaries; as they are without documents."""
    if documents is None:
        yield from axes
        return
    for queries, keys in axes:
        for first, last in pairwise(documents):
            rows, columns = queries.between(first, last), keys.between(first, last)
            if len(rows.positions) and len(columns.positions):
                yield rows, columns


def _offset_tiles(offsets: Offsets, queries: Axis, keys: Axis, size: TileSize) -> Iterator[Tile]:
    q, k = queries.positions, keys.positions
    q_tensor, k_tensor = (torch.from_numpy(positions).to(size.device) for positions in (q, k))
    biases = _Biases(offsets, keep=isinstance(queries.index, slice) and isinstance(keys.index, slice))
    for first in range(0, len(q), size.queries):
        last = min(first + size.queries, len(q))
        low = int(np.searchsorted(k, q[first] - offsets.high, "left"))
        high = int(np.searchsorted(k, q[last - 1] - offsets.low, "right"))
        # From the end, so that all but the earliest tile lie the same way to the diagonal and share their biases.
        for end in range(high, low, -size.keys):
            rows, columns = slice(first, last), slice(max(low, end - size.keys), end)
            q_positions, k_positions = q_tensor[rows], k_tensor[columns]
            bias = None
            if not _all_visible(offsets, q[rows], k[columns]):
                place = int(k[columns.start] - q[first]), last - first, end - columns.start
                bias = biases.at(place, q_positions, k_positions, size.dtype)
            yield Tile(rows, columns, q_positions, k_positions, bias, first=end == high)


class _Biases:
    """The biases of a strip, made anew only where tiles lie differently to the diagonal."""

    def __init__(self, offsets: Offsets, keep: bool) -> None:
        self.offsets = offsets
        self.most = MOST_BIASES if keep else 0
        self.known: dict[tuple[int, int, int], Tensor] = {}

    def at(self, place: tuple[int, int, int], q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
        """The bias of queries at `q` and keys at `k`; `place` is their first distance and their numbers."""
        if place in self.known:
            return self.known[place]
        made = _bias(self.offsets.holds(q[:, None] - k[None, :]), dtype)
        if len(self.known) < self.most:
            self.known[place] = made
        return made


def _all_visible(offsets: Offsets, q: NDArray[np.int64], k: NDArray[np.int64]) -> bool:
    return offsets.dense and offsets.low <= q[0] - k[-1] and q[-1] - k[0] <= offsets.high


def _block_tiles(term: Blocks, queries: Axis, keys: Axis, size: TileSize, ends: Ends | None) -> Iterator[Tile]:
    q_tensor, k_tensor = (torch.from_numpy(axis.positions).to(size.device) for axis in (queries, keys))
    masks = torch.from_numpy(term.tiles).to(size.device)
    most = max(1, size.keys // term.size)
    for row, (begin, end) in enumerate(pairwise(term.starts[0].tolist())):
        whole = slice(row * term.size, min((row + 1) * term.size, len(q_tensor)))
        rows = _between(queries, whole, ends)
        for first in range(begin, end, most) if rows.start < rows.stop else ():
            some = slice(first, min(first + most, end))
            columns = (term.columns[some, None] * term.size + np.arange(term.size)).ravel()
            seen = columns < len(k_tensor)
            if ends is not None:
                seen &= (columns >= ends.first) & (columns < ends.last)
            bias = _block_bias(masks, term.tile[some], size.dtype)
            if bias is not None:
                bias = bias[rows.start - whole.start : rows.stop - whole.start, torch.from_numpy(seen)]
            columns = torch.from_numpy(columns[seen]).to(size.device)
            if len(columns):
                yield Tile(rows, columns, q_tensor[rows], k_tensor[columns], bias, first=first == begin)


def _between(axis: Axis, places: slice, ends: Ends | None) -> slice:
    """Those of the places that stand between the ends."""
    if ends is None:
        return places
    low, high = np.searchsorted(axis.positions[places], (ends.first, ends.last))
    return slice(places.start + int(low), places.start + int(high))


def _run_tiles(runs: KnownRuns, queries: Axis, keys: Axis, size: TileSize) -> Iterator[Tile]:
    start, stop = (torch.from_numpy(end).to(size.device) for end in (runs.start, runs.stop))
    q_tensor, k_tensor = (torch.from_numpy(axis.positions).to(size.device) for axis in (queries, keys))
    for first in range(0, len(queries.positions), size.queries):
        rows = slice(first, min(first + size.queries, len(queries.positions)))
        low, high = max(int(runs.start[rows.start]), 0), min(int(runs.stop[rows.stop - 1]), len(keys.positions))
        for end in range(high, low, -size.keys):
            columns = slice(max(low, end - size.keys), end)
            bias = None
            if runs.start[rows.stop - 1] > columns.start or runs.stop[rows.start] < columns.stop:
                seen = (k_tensor[columns] >= start[rows, None]) & (k_tensor[columns] < stop[rows, None])
                bias = _bias(seen, size.dtype)
            yield Tile(rows, columns, q_tensor[rows], k_tensor[columns], bias, first=end == high)


def _block_bias(masks: Tensor, tile: NDArray[np.int64], dtype: torch.dtype) -> Tensor | None:
    """The biases of whole blocks side by side."""
    if (tile < 0).all():
        return None
    full = torch.ones_like(masks[0])
    return _bias(torch.cat([full if index < 0 else masks[index] for index in tile.tolist()], dim=1), dtype)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
