"""Blocks as tables on the device: which blocks each row of blocks holds, seen from the queries and from the keys.

A table comes from a plan, whose blocks are known on the host, or from a layout that is made on the device at run time.
The first waits for the device when it is made, and is kept. The second waits with the first layout of a shape alone:
rows stand at fixed places, and what lies behind a row's count is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..plan import Blocks, Plan
from .captured import kept, refuse_capture
from .devices import finished, int32_on
from .problem import Layout


class BlockTable(NamedTuple):
    """Row `r` of layout `l` holds `blocks[starts[l, r] : starts[l, r] + counts[l, r]]`, ascending."""

    size: int
    """Edge of a block."""
    starts: Tensor
    """int32 [L, rows]."""
    counts: Tensor
    """int32 [L, rows]."""
    blocks: Tensor
    """int32 [entries], numbers of blocks on the other side."""
    tile: Tensor | None
    """int32 [entries], each block's mask in `tiles`, or -1 where all of it is visible; None where all are such."""
    tiles: Tensor | None
    """uint8 [T, size, size], 1 where visible: the table's own side first."""
    layout: Tensor
    """int32 [H], or [B · H] where batch rows differ: the layout of each query head."""
    order: Tensor
    """int32 [L, rows], the rows of each layout, the heaviest first: what runs longest should start first."""

    def of_heads(self, first: int, last: int) -> BlockTable:
        """The same for the query heads `first … last - 1` alone; of tables whose batch rows are alike."""
        return self._replace(layout=self.layout[first:last])


class BlockTables(NamedTuple):
    """The same blocks from both sides."""

    by_queries: BlockTable
    by_keys: BlockTable

    @property
    def size(self) -> int:
        """Edge of a block."""
        return self.by_queries.size

    def of_heads(self, first: int, last: int) -> BlockTables:
        """As `BlockTable` says."""
        return BlockTables(self.by_queries.of_heads(first, last), self.by_keys.of_heads(first, last))


def block_tables(term: Blocks, plan: Plan, device: torch.device) -> BlockTables:
    """The term's tables on the device; kept for the last 64 terms, about 16 bytes a block."""
    return kept(_block_tables(term, plan, device), device)


@lru_cache(maxsize=64)
def _block_tables(term: Blocks, plan: Plan, device: torch.device) -> BlockTables:
    refuse_capture(device)
    starts, counts = term.starts[:, :-1], np.diff(term.starts)
    layout = int32_on(device, term.layouts)
    row = np.tile(np.arange(counts.shape[1]), len(counts)).repeat(counts.ravel())
    number = np.arange(len(counts)).repeat(counts.sum(axis=1))
    tile = int32_on(device, term.tile) if len(term.tiles) else None
    tiles = torch.from_numpy(term.tiles.astype(np.uint8)).to(device) if len(term.tiles) else None
    counts, columns = int32_on(device, counts), int32_on(device, term.columns)
    by_queries = BlockTable(
        term.size, int32_on(device, starts), counts, columns, tile, tiles, layout, heaviest_first(counts)
    )
    key_rows = -(-plan.keys // term.size)
    entries = int32_on(device, number).long() * key_rows + columns
    return finished(BlockTables(by_queries, _turned(by_queries, entries, int32_on(device, row), key_rows)), device)


def _turned(table: BlockTable, entries: Tensor, row: Tensor, key_rows: int) -> BlockTable:
    """The table from the other side: `entries` [n] are layout · key_rows + column, `row` [n] the rows as they stand."""
    entries, order = entries.sort(stable=True)
    edges = torch.arange(table.starts.shape[0] * key_rows + 1, device=row.device)
    bounds = torch.searchsorted(entries, edges).int()
    starts, counts = (x.view(-1, key_rows) for x in (bounds[:-1], bounds.diff()))
    tile = None if table.tile is None else table.tile[order]
    tiles = None if table.tiles is None else table.tiles.mT.contiguous()
    return BlockTable(table.size, starts, counts, row[order], tile, tiles, table.layout, heaviest_first(counts))


def table_of_layout(layout: Tensor, size: int, batch: int, heads: int) -> BlockTable:
    """The rows of a layout [B or 1, H or 1, rows, columns], bool, on its device; `layout.mT` gives the keys' side."""
    starts, numbers = kept(_places(layout.shape, batch, heads, layout.device), layout.device)
    blocks = layout.view(torch.uint8).sort(dim=-1, descending=True, stable=True).indices.int().flatten()
    counts = layout.sum(-1, dtype=torch.int32).flatten(0, 1).contiguous()
    return BlockTable(size, starts, counts, blocks, None, None, numbers, heaviest_first(counts))


@lru_cache(maxsize=512)  # of both sides
def _places(shape: torch.Size, batch: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(where rows begin, layouts of heads) of the tables of all layouts of a shape."""
    refuse_capture(device)
    own_batch, own_heads, rows, columns = shape
    starts = torch.arange(own_batch * own_heads * rows, dtype=torch.int32, device=device) * columns
    numbers = torch.arange(own_batch * own_heads, dtype=torch.int32, device=device).view(own_batch, own_heads)
    places = starts.view(-1, rows), numbers.expand(batch if own_batch > 1 else 1, heads).flatten().contiguous()
    return finished(places, device)


@dataclass(frozen=True)
class LayoutTables:
    """The blocks of a layout for so many batch rows and query heads; each side is made when somebody asks for it."""

    layout: Layout
    batch: int
    heads: int

    @property
    def size(self) -> int:
        """Edge of a block."""
        return self.layout.size

    @cached_property
    def by_queries(self) -> BlockTable:
        """What each row of query blocks sees."""
        return table_of_layout(self.layout.visible, self.size, self.batch, self.heads)

    @cached_property
    def by_keys(self) -> BlockTable:
        """What sees each row of key blocks."""
        return table_of_layout(self.layout.visible.mT, self.size, self.batch, self.heads)


def heaviest_first(counts: Tensor) -> Tensor:
    """int32 [L, rows], the rows of each layout in the order of their counts [L, rows], and else as they stand."""
    return counts.argsort(dim=-1, descending=True, stable=True).int()
