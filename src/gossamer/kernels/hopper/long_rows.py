"""Rows of blocks that alone would keep one stream of work busy when all others are done, cut into parts.

A stream takes whole rows of a table. A few rows that see everything, or columns that all see, are then what a launch
waits for: of BigBird's 1,024 blocks the first and the last see 1,024, and all others eight. Such rows leave their table
for another, whose rows are parts of them: each has a copy of the row's queries (or keys) and its share of the list.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..block_tables import BlockTable, heaviest_first
from ..captured import kept, refuse_capture
from ..devices import finished, int32_on, multiprocessors
from .blocks_forward import query_team
from .configs import ROWS, blocks_team, tile_width
from .operands import Inputs

SHORTEST_LONG_ROW = 64
"""Tiles up to which no row is long: what takes its place costs a few launches."""

SHARE_OF_LOAD = 8
"""A row is long beyond this part of all that a stream has to do: the rest is dealt out without a look at it."""

SHORTEST_PART = 16
"""Tiles that the parts of the longest row have at least."""

BETWEEN_ITEMS = 3
"""Tiles in the time of which a stream goes on from one item to the next."""

Integers = NDArray[np.int64]


class Crew(NamedTuple):
    """Who takes the rows of a table."""

    streams: int
    units: int
    """Batch rows and heads, or teams of heads, in each of which every row is taken once."""
    tiles: int
    """Tiles that pass through a stream's ring for each block of a row."""
    length: int
    """Queries, or keys, in the rows."""

    @staticmethod
    def of_queries(inputs: Inputs, table: BlockTable) -> Crew:
        """Who takes rows of queries."""
        q = inputs.q
        team, streams = query_team(*inputs, table)
        units = q.shape[0] * q.shape[1] // team.heads_together
        return Crew(streams * multiprocessors(q.device), units, table.size // ROWS, q.shape[2])

    @staticmethod
    def of_keys(inputs: Inputs, table: BlockTable) -> Crew:
        """Who takes rows of keys, each with what sees it in every head that shares them."""
        q, k, v = inputs
        _, streams = blocks_team(table.size, tile_width(k.shape[3]), tile_width(v.shape[3]))
        tiles = table.size // ROWS * (q.shape[1] // k.shape[1])
        return Crew(streams * multiprocessors(k.device), k.shape[0] * k.shape[1], tiles, k.shape[2])


class LongRows(NamedTuple):
    """Rows in parts: rows `edges[i] … edges[i + 1] - 1` of the table are the parts of the row of blocks `places[i]`."""

    table: BlockTable
    edges: Tensor
    """int32 [n + 1]."""
    places: Tensor
    """int32 [n], ascending."""
    copied: Tensor
    """int64 [rows of the table · size], whose copy each row of a part is; behind the last there are more of the last.
    """


class Cut(NamedTuple):
    """A table in which long rows are empty, and these rows in parts, or None where it has none."""

    short: BlockTable
    long: LongRows | None


class OnHost(NamedTuple):
    """What a `BlockTable` says of its rows and heads, as int64."""

    starts: Integers
    counts: Integers
    layout: Integers


def cut(table: BlockTable, crew: Crew) -> Cut:
    """The table with its long rows apart, where the crew is done sooner so; kept for the last 128 tables.

    A row that is long in one layout is cut in all of them: heads that share keys then share the copies.

    Raises:
        RuntimeError: It has not been cut before, and a CUDA graph is being captured.
    """
    return kept(_cut(table, crew), table.counts.device)


@lru_cache(maxsize=128)
def _cut(table: BlockTable, crew: Crew) -> Cut:
    host = _on_host(table)
    tiles = host.counts[host.layout] * crew.tiles
    longest, load = tiles.max(0), tiles.sum(1).mean() * crew.units / crew.streams
    places = np.flatnonzero(longest > max(SHORTEST_LONG_ROW, load / SHARE_OF_LOAD))
    parts = parts_of(longest[places], crew)
    places, parts = places[parts > 1], parts[parts > 1]
    if not len(places):
        return Cut(table, None)
    refuse_capture(table.counts.device)
    rest = host.counts.copy()
    rest[:, places] = 0
    made = Cut(_with_rows(table, host.starts, rest), _in_parts(table, places, parts, crew.length))
    return finished(made, table.counts.device)


def parts_of(longest: Integers, crew: Crew) -> Integers:
    """Into how many parts each of the rows [n] of so many tiles is cut, so that the crew is done with all the soonest.

    Streams take one item each in rounds, and a round lasts as long as the longest part.
    """
    longest_of_all, shortest = longest.max(initial=1), max(SHORTEST_PART, crew.tiles)
    most_parts = min(max(longest_of_all // shortest, 1), crew.streams)
    lengths = -(-longest_of_all // np.arange(1, most_parts + 1)[:, None])
    parts = -(-longest // lengths)
    rounds = -(-crew.units * parts.sum(1) // crew.streams)
    return parts[np.argmin(rounds * ((-(-longest // parts)).max(1, initial=0) + BETWEEN_ITEMS))]


def _in_parts(table: BlockTable, places: Integers, parts: Integers, length: int) -> LongRows:
    """The rows of blocks at `places` [n] in so many parts each, whose shares of a list differ by one block at most."""
    host, device = _on_host(table), table.counts.device
    edges = np.concatenate([[0], parts.cumsum()])
    rows, shares = places.repeat(parts), parts.repeat(parts)
    number = np.arange(edges[-1]) - edges[:-1].repeat(parts)
    begin, end = host.counts[:, rows] * number // shares, host.counts[:, rows] * (number + 1) // shares
    copied = (rows[:, None] * table.size + np.arange(table.size)).clip(max=length - 1).ravel()
    return LongRows(
        _with_rows(table, host.starts[:, rows] + begin, end - begin),
        int32_on(device, edges),
        int32_on(device, places),
        torch.from_numpy(copied).to(device),
    )


def _with_rows(table: BlockTable, starts: Integers, counts: Integers) -> BlockTable:
    """The table with other rows, which list some of its entries."""
    starts, counts = (int32_on(table.counts.device, x) for x in (starts, counts))
    return table._replace(starts=starts, counts=counts, order=heaviest_first(counts))


@lru_cache(maxsize=128)
def _on_host(table: BlockTable) -> OnHost:
    """Waits for the device."""
    refuse_capture(table.counts.device)
    return OnHost(*(x.cpu().numpy().astype(np.int64) for x in (table.starts, table.counts, table.layout)))
