"""Lists of chosen blocks, made on the device without waiting for it: see `tables`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import tables
from .items import list_items

PART = 1024
"""Entries of a block's list that one program works through, and half as many more where these are the last."""

WORDS = 1024
"""Words that a program reads at a time."""


class ChosenAxes(NamedTuple):
    """Lengths, the position of query 0, and whether keys after a query are hidden."""

    queries: int
    keys: int
    offset: int
    blocks: int
    causal: tl.constexpr


class Own(NamedTuple):
    """What each part of a tile takes of the tile's list, in order: `counts` places, their blocks and words."""

    places: Tensor
    blocks: Tensor
    members: Tensor
    counts: Tensor


class Shared(NamedTuple):
    """For each tile of each lane: `counts` blocks, and the word of the queries that chose each of them."""

    blocks: Tensor
    members: Tensor
    counts: Tensor
    complete: Tensor | None
    """int32 [lanes, tiles]: not zero where a tile's list names all that its queries chose; None where that is not
    asked."""
    tiles: int
    most: int


class Rare(NamedTuple):
    """For each block of each lane its entries, and items of work: parts of lists, `most` of them at most."""

    entries: Tensor
    """int32 [lanes, Q * n], by block: `query * slots + rank`, slots being the power of two from n on."""
    starts: Tensor
    totals: Tensor
    items: Tensor
    """int32 [lanes, most]: for each program of a lane the block of its item, the longest items first; the number of
    blocks where there is no item."""
    parts: Tensor
    """int32 [lanes, most]: which part of the block's list the item is."""
    first_items: Tensor
    """int32 [lanes, blocks]: the number of a block's first item; those of its other parts follow."""
    counts: Tensor
    """int32 [lanes, Q]: entries of each query."""
    latest: Tensor
    """int32 [lanes, blocks]: the last query that chose it, rarely or not; -1 where none did."""
    most: int


def ceil_div(count: int, size: int) -> int:
    """How many of a size hold so many."""
    return -(-count // size)


def up_to_power(count: int) -> int:
    """The power of two from `count` on."""
    return 1 << (count - 1).bit_length()


def grid(kernel: Any, programs: int) -> Callable[..., None]:
    """The kernel, which runs so many programs when it is called."""
    return kernel[programs,]


@dataclass(frozen=True)
class Sharing:
    """When a block is computed for a whole tile of queries rather than for those who chose it."""

    least: int
    """So many of the tile's queries chose it, and as many again for each part of the tile that has to compute it."""
    parts: int = 1
    """Each computes what some query of it chose."""
    step: int = 1
    """Of blocks in a row that a part could leave out, it takes every so manyth."""
    weight: int | None = None
    """What it costs a part to compute a block, in 32nds of what a block costs that is computed apart and that all
    queries of the tile chose. Whatever else a tile's queries chose, it computes where that is no dearer; without a
    weight it never does."""


@dataclass(frozen=True, eq=False)
class Choices:
    """Indices [lanes, Q, n] of blocks, marked by tiles of queries."""

    indices: Tensor
    axes: ChosenAxes
    size: int
    tile: int
    marks: Tensor

    @staticmethod
    def of(indices: Tensor, size: int, keys: int, tile: int, *, causal: bool) -> Choices:
        """`indices` as the call gives them, [B, N, Q, n]: a lane is a run of heads of a batch row."""
        lanes, queries, chosen = indices.shape[0] * indices.shape[1], *indices.shape[2:]
        indices = indices.reshape(lanes, queries, chosen).contiguous()
        axes = ChosenAxes(queries, keys, keys - queries, ceil_div(keys, size), tl.constexpr(causal))
        tiles = ceil_div(queries, tile)
        marks = torch.zeros(lanes, tiles, axes.blocks, dtype=torch.int32, device=indices.device)
        choices = Choices(indices, axes, size, tile, marks)
        grid(tables.mark, lanes * tiles)(indices, marks, axes, tiles, TILE=tile, **choices._constants)
        return choices

    @property
    def _constants(self) -> dict[str, int]:
        chosen = self.indices.shape[2]
        return {"SIZE": self.size, "CHOSEN": chosen, "PADDED": up_to_power(chosen)}

    def shared(self, sharing: Sharing) -> tuple[Shared, Own]:
        """Blocks that are computed for whole tiles, and what each of their parts takes of them."""
        lanes, tiles, blocks = self.marks.shape
        most = min(blocks, self.tile * self.indices.shape[2] // max(1, 2 * sharing.least))
        listed, members = (self.marks.new_empty(lanes, tiles, most) for _ in range(2))
        counts = self.marks.new_empty(lanes, tiles)
        complete = None if sharing.weight is None else torch.empty_like(counts)
        places, own_blocks, own_members = (self.marks.new_empty(lanes, tiles, sharing.parts, most) for _ in range(3))
        own = Own(places, own_blocks, own_members, self.marks.new_empty(lanes, tiles, sharing.parts))
        width = min(WORDS, up_to_power(blocks))
        grid(tables.list_shared, lanes * tiles)(
            self.marks, listed, members, counts, complete, own if sharing.parts > 1 else None, self.axes, most,
            WEIGHT=sharing.weight, WIDTH=width, STEP=sharing.step, **self._parted(sharing),
        )  # fmt: skip
        return Shared(listed, members, counts, complete, tiles, most), own

    def rare(self, sharing: Sharing, complete: Tensor | None = None) -> Rare:
        """All others, block by block; there are none in tiles that are complete."""
        lanes, tiles, blocks = self.marks.shape
        _, queries, chosen = self.indices.shape
        rows, columns = 128, 8
        before = torch.empty_like(self.marks)
        totals, latest = (self.marks.new_empty(lanes, blocks) for _ in range(2))
        programs = lanes * ceil_div(blocks, columns)
        given = self.marks, complete, before, totals, latest, self.axes, tiles
        grid(tables.count_rare, programs)(*given, ROWS=rows, COLUMNS=columns, **self._parted(sharing))
        most = queries * chosen // PART + blocks
        starts, first_items = (torch.empty_like(totals) for _ in range(2))
        items, parts = (totals.new_empty(lanes, most) for _ in range(2))
        width = max(16, min(512, up_to_power(blocks)))
        grid(list_items, lanes)(
            totals, starts, first_items, items, parts, self.axes, most, PART=PART, WIDTH=width, CLASSES=16
        )
        entries = self.marks.new_empty(lanes, queries * chosen)
        counts = self.marks.new_empty(lanes, queries)
        together = max(1, 4096 // up_to_power(chosen) ** 2)
        grid(tables.enter_rare, lanes * ceil_div(queries, together))(
            self.indices, self.marks, complete, before, starts, entries, counts, self.axes, tiles,
            QUERIES=together, **self._parted(sharing), **self._constants,
        )  # fmt: skip
        return Rare(entries, starts, totals, items, parts, first_items, counts, latest, most)

    def _parted(self, sharing: Sharing) -> dict[str, int]:
        return {"LEAST": sharing.least, "PART": self.tile // sharing.parts, "PARTS": sharing.parts}
