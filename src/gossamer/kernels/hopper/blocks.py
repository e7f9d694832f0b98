"""What the kernels over tables of blocks share: the order of the work, rows' lists of blocks, and what tiles show.

A program is one stream of work or several. The rows of a stream's team see the same blocks, and each of these passes
through the stream's ring for all of the team: two warpgroups own a block of 128 rows, or the same 64
rows of heads that share keys and lists. Where rows share nothing, each warpgroup has a stream of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin

from ..block_tables import BlockTable
from .block_masks import WORDS, masked
from .configs import ROWS, SHARED_MEMORY
from .ring import TILE, slot
from .sweep import placed

MOST_SLOTS = 8
"""Tiles in a ring beyond which nothing is gained."""

RESERVED = 1024
"""Bytes of shared memory for barriers and for what the compiler adds."""


class Table(NamedTuple):
    """A `BlockTable` on the device, its masks as `packed` makes them; `tile` is None where there are none."""

    starts: gl.tensor
    counts: gl.tensor
    blocks: gl.tensor
    tile: gl.tensor
    tiles: gl.tensor
    layout: gl.tensor
    order: gl.tensor
    rows: gl.tensor
    heads: gl.tensor
    """Query heads of which each batch row has its own in `layout`, or 0 where batch rows are alike."""


class List(NamedTuple):
    """A row's blocks: `count` of them from entry `first` on."""

    first: gl.tensor
    count: gl.tensor


class Bounds(NamedTuple):
    """Positions on the other side that exist: begin ... end - 1."""

    begin: gl.tensor
    end: gl.tensor
    cuts: gl.tensor
    """Whether something of a list lies outside: the tiles of most lists are not looked at one by one."""


TABLE = ("starts", "counts", "blocks", "tile", "tiles", "layout", "order", "rows", "layout_heads")
NUMBERS = ("rows", "layout_heads", "scale", "queries", "keys")


def arguments_of(table: BlockTable, heads: int) -> tuple[object, ...]:
    """A table as kernels take it."""
    tables = table.starts, table.counts, table.blocks, table.tile, table.tiles, table.layout, table.order
    return *tables, table.starts.shape[1], heads if len(table.layout) > heads else 0


@builtin
def in_streams(consume, given, produce, brought, rooms, config, *, _semantic=None, _generator=None) -> None:
    """Runs `consume(given, room, config, c, s)` in each consumer's warps, `produce(brought, room, config, s)` in one.

    `rooms` are what the streams have in shared memory. Python runs this while Triton compiles: a jitted function
    cannot make a list whose length it is told.
    """
    made, constant = config.value, gl.constexpr
    streams, consumers = range(made.streams), range(made.team.consumers)
    parts = [(consume, (given, rooms[s], config, constant(c), constant(s))) for s in streams for c in consumers]
    parts += [(produce, (brought, rooms[s], config, constant(s))) for s in streams]
    gl.warp_specialize(parts, made.warps, made.registers, _semantic=_semantic, _generator=_generator)


@gluon.jit
def turns_of(work, stream: gl.constexpr, config: gl.constexpr):
    """How many items a stream of this program takes."""
    STREAMS: gl.constexpr = config.streams
    rounds = work.items // (gl.num_programs(0) * STREAMS)
    return rounds + (item_of(rounds, stream, config) < work.items).to(gl.int32)


@gluon.jit
def item_of(turn, stream: gl.constexpr, config: gl.constexpr):
    """Every other round of the streams runs backwards, so that none always gets the heavier items."""
    STREAMS: gl.constexpr = config.streams
    streams = gl.num_programs(0) * STREAMS
    index = gl.program_id(0) * STREAMS + stream
    return turn * streams + gl.where(turn % 2 == 0, index, streams - 1 - index)


@gluon.jit
def unit_and_rank(turn, stream: gl.constexpr, work, config: gl.constexpr):
    """A stream's item of a turn; beyond the last turn, some item that there is."""
    return placed(gl.minimum(item_of(turn, stream, config), work.items - 1), work)


@gluon.jit
def layout_of(table, batch, head):
    """Where the rows of a head's layout begin."""
    return gl.load(table.layout + batch * table.heads + head) * table.rows


@gluon.jit
def list_of(table, row):
    """What a row of a layout sees."""
    return List(gl.load(table.starts + row), gl.load(table.counts + row))


@gluon.jit
def ends_of(within, batch, length):
    """(begin, end) of the positions of a batch row's sequence that exist."""
    if within is None:
        return 0, length
    else:
        return gl.load(within + 2 * batch), gl.minimum(gl.load(within + 2 * batch + 1), length)


@gluon.jit
def bounds_of(table, entries, begin, end, config: gl.constexpr):
    """Bounds of a list where positions `begin` ... `end` - 1 exist; of an empty one, nothing does."""
    SIZE: gl.constexpr = config.size
    some = entries.count > 0
    first = gl.load(table.blocks + entries.first, mask=some, other=0)
    last = gl.load(table.blocks + entries.first + entries.count - 1, mask=some, other=0)
    cuts = (entries.count == 0) | (first * SIZE < begin) | (last * SIZE + SIZE > end)
    return Bounds(begin, gl.where(some, end, 0), cuts)


@gluon.jit
def tile_at(table, entries, n, config: gl.constexpr):
    """(the entry, the part of its block) of a list's n-th tile; tiles count in the order of the list."""
    PARTS: gl.constexpr = config.size // TILE
    return entries.first + n // PARTS, n % PARTS


@gluon.jit
def tile_in(ring, i, part, config: gl.constexpr):
    """The `part`-th 64 rows of the ring's i-th block, as a matrix [64, width]."""
    block = ring.index(slot(i, config.slots)).reshape((ring.shape[3], ring.shape[4]))
    return block.slice(part * TILE, TILE)


@gluon.jit
def shown(p, table, entries, n, bounds, part, otherwise: gl.constexpr, config: gl.constexpr):
    """p [64, 64] of a list's n-th tile where the pair is visible, else what it is otherwise.

    Its rows are the `part`-th 64 of their block. Where no bounds are given, all of the other side exists. Most tiles
    are all visible, and cost a comparison or two.
    """
    SIZE: gl.constexpr = config.size
    PARTS: gl.constexpr = config.size // TILE
    entry, other = tile_at(table, entries, n, config)
    if bounds is not None:  # noqa: SIM102 (known when Triton compiles, unlike the other)
        if bounds.cuts:
            begin = gl.load(table.blocks + entry, mask=entries.count > 0, other=0) * SIZE + other * TILE
            columns = gl.arange(0, TILE, gl.SliceLayout(0, p.type.layout))
            lane = begin + gl.expand_dims(columns & 6, 0)
            rest = gl.expand_dims(columns & ~6, 0)
            p = gl.where((rest >= bounds.begin - lane) & (rest < bounds.end - lane), p, otherwise)
    if table.tile is not None:
        mask = gl.load(table.tile + entry, mask=entries.count > 0, other=-1)
        if mask >= 0:
            p = masked(p, table.tiles + ((mask * PARTS + part) * PARTS + other) * WORDS, otherwise)
    return p


def slots_of(own: int, ring: int, streams: int, parts: int = 1) -> int:
    """Places in each stream's ring for `parts` tiles of `ring` columns in all, beside tiles of `own` columns in all."""
    columns = (SHARED_MEMORY - RESERVED) // (2 * ROWS) // streams
    return min(MOST_SLOTS, (columns - own) // ring) // parts
