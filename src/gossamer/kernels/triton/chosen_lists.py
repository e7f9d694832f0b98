"""Lists of chosen blocks, made on the device without waiting for it: see `chosen_tables`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import chosen_tables

PART = 1024
"""Entries of a block's list that one program works through at most."""

WORDS = 1024
"""Words that a program reads at a time."""


class ChosenAxes(NamedTuple):
    """Lengths, the position of query 0, and whether keys after a query are hidden."""

    queries: int
    keys: int
    offset: int
    blocks: int
    causal: tl.constexpr


class Shared(NamedTuple):
    """For each tile of each lane: `counts` blocks, and the word of the queries that chose each of them."""

    blocks: Tensor
    members: Tensor
    counts: Tensor
    tiles: int
    most: int


class Rare(NamedTuple):
    """For each block of each lane its entries, and items of work: parts of lists, `most` of them at most."""

    entries: Tensor
    """int32 [lanes, Q * n]: choices, by block."""
    starts: Tensor
    totals: Tensor
    items: Tensor
    """int32 [lanes, most]: the block of an item; the number of blocks where there is no item."""
    first_items: Tensor
    """int32 [lanes, blocks]: its first item."""
    used: Tensor
    """int8 [lanes, Q, n]: whether a choice has an entry."""
    most: int


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
        axes = ChosenAxes(queries, keys, keys - queries, triton.cdiv(keys, size), tl.constexpr(causal))
        tiles = triton.cdiv(queries, tile)
        marks = torch.zeros(lanes, tiles, axes.blocks, dtype=torch.int32, device=indices.device)
        choices = Choices(indices, axes, size, tile, marks)
        chosen_tables.mark[lanes * tiles,](indices, marks, axes, tiles, TILE=tile, **choices._constants)
        return choices

    @property
    def _constants(self) -> dict[str, int]:
        chosen = self.indices.shape[2]
        return {"SIZE": self.size, "CHOSEN": chosen, "PADDED": triton.next_power_of_2(chosen)}

    def shared(self, least: int) -> Shared:
        """Blocks that at least so many queries of a tile chose."""
        lanes, tiles, blocks = self.marks.shape
        most = min(blocks, self.tile * self.indices.shape[2] // least)
        listed, members = (self.marks.new_empty(lanes, tiles, most) for _ in range(2))
        counts = self.marks.new_empty(lanes, tiles)
        width = min(WORDS, triton.next_power_of_2(blocks))
        launch = chosen_tables.list_shared[lanes * tiles,]
        launch(self.marks, listed, members, counts, self.axes, most, LEAST=least, WIDTH=width)
        return Shared(listed, members, counts, tiles, most)

    def rare(self, least: int) -> Rare:
        """What fewer queries of a tile chose, block by block."""
        lanes, tiles, blocks = self.marks.shape
        _, queries, chosen = self.indices.shape
        rows, columns = 64, 16
        before, totals = torch.empty_like(self.marks), self.marks.new_empty(lanes, blocks)
        launch = chosen_tables.count_rare[lanes * triton.cdiv(blocks, columns),]
        launch(self.marks, before, totals, self.axes, tiles, LEAST=least, ROWS=rows, COLUMNS=columns)
        starts = (totals.cumsum(1) - totals).int()
        parts = (totals + (PART - 1)) // PART
        ends = parts.cumsum(1).int()
        most = queries * chosen // PART + blocks
        numbers = torch.arange(most, dtype=torch.int32, device=totals.device).expand(lanes, -1).contiguous()
        items = torch.searchsorted(ends, numbers, right=True, out_int32=True)
        entries = self.marks.new_empty(lanes, queries * chosen)
        used = torch.empty(lanes, queries, chosen, dtype=torch.int8, device=totals.device)
        together = max(1, 4096 // triton.next_power_of_2(chosen) ** 2)
        chosen_tables.enter_rare[lanes * triton.cdiv(queries, together),](
            self.indices, self.marks, before, starts, entries, used, self.axes, tiles,
            LEAST=least, TILE=self.tile, QUERIES=together, **self._constants,
        )  # fmt: skip
        return Rare(entries, starts, totals, items, ends - parts, used, most)
