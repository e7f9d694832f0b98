"""The forward over chosen blocks on Hopper: tiles of queries over the blocks that enough of them share.

A work item is a tile of neighbouring queries in all heads that share a key head, half of it for either consumer. The
blocks of keys and values that the tile's list names pass through a ring for both, and each leaves out what none of its
queries chose. Rows whose query did not choose a
block take no part in its softmax, which costs nothing for each score: what is subtracted from their scores is beyond
all bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ..block_choices.lists import Own, Shared
from .configs import ROWS, SHARED_MEMORY, Team
from .descriptors import ELEMENT, Tiles, tiles
from .launch import Launch, Operands, launch
from .rescale import raised, rescaled
from .ring import LN2, LOG2E, LOWEST, TILE, phase, row_max, settle, slot, thread_sum, tile_of
from .sweep import as_a_team, barriers_of, buffers, empty, full, own_empty, own_full

BEYOND = gl.constexpr(1e30)
"""Subtracted from a score, it leaves nothing of its exponential."""

RESERVED = 1024
"""Bytes of shared memory for barriers and for what the compiler adds."""


@dataclass(frozen=True)
class TilesConfig:
    """One compiled kernel: a pair of consumers, each with queries in `repeats` heads, and a ring."""

    repeats: int
    slots: int
    causal: bool
    team: Team = field(default_factory=lambda: Team(2))
    own: int = 2
    """Places for tiles of queries, one for each consumer."""
    takers: int = 2

    @property
    def queries(self) -> int:
        """Queries of a consumer's tile."""
        return ROWS // self.repeats


class Listed(NamedTuple):
    """For each tile of each lane: `counts` blocks."""

    blocks: gl.tensor
    counts: gl.tensor
    tiles: gl.tensor
    most: gl.tensor


class Taken(NamedTuple):
    """For each consumer of each tile: `counts` places of the tile's list, the blocks and who chose them."""

    places: gl.tensor
    blocks: gl.tensor
    members: gl.tensor
    counts: gl.tensor


class Shape(NamedTuple):
    """Counts from which places follow."""

    items: gl.tensor
    heads: gl.tensor
    key_heads: gl.tensor
    alike: gl.tensor
    """Neighbouring key heads that choose alike."""
    queries: gl.tensor
    keys: gl.tensor


class Item(NamedTuple):
    """A tile of queries, and how many blocks it shares."""

    batch: gl.tensor
    key_head: gl.tensor
    tile: gl.tensor
    place: gl.tensor
    """Of the tile among those of all lanes."""
    count: gl.tensor


@gluon.jit
def _turns(shape):
    """How many items this program takes."""
    programs = gl.num_programs(0)
    return (shape.items - gl.program_id(0) + programs - 1) // programs


@gluon.jit
def _item(turn, shared, shape):
    """This program's item of a turn; beyond the last turn, some item that there is."""
    item = gl.minimum(turn * gl.num_programs(0) + gl.program_id(0), shape.items - 1)
    unit = item // shared.tiles
    tile = shared.tiles - 1 - (item - unit * shared.tiles)
    batch = unit // shape.key_heads
    place = unit // shape.alike * shared.tiles + tile
    return Item(batch, unit - batch * shape.key_heads, tile, place, gl.load(shared.counts + place))


@gluon.jit
def _passes(item):
    """How many blocks pass through the ring for an item: one at least."""
    return gl.maximum(item.count, 1)


@gluon.jit
def _block(shared, item, n):
    """An item's n-th block; beyond the last, block 0."""
    return gl.load(shared.blocks + item.place.to(gl.int64) * shared.most + n, mask=n < item.count, other=0)


@gluon.jit
def _entry(own, first, count, n, otherwise):
    """(place in the item's list, block, word of the queries that chose it) of what a consumer takes as its n-th; beyond
    the last, nobody chose block 0."""
    there = n < count
    place = gl.load(own.places + first + n, mask=there, other=0)
    block = gl.load(own.blocks + first + n, mask=there, other=0)
    return gl.where(there, place, otherwise), block, gl.load(own.members + first + n, mask=there, other=0)


@gluon.jit
def _leave_out(bars, start, stop, config: gl.constexpr):
    """Frees the ring's places `start … stop - 1`, of which this consumer reads nothing."""
    for i in range(start, stop):
        mbarrier.wait(full(bars, i, config), phase(i, config.slots))
        mbarrier.arrive(empty(bars, i, config), count=1)


@gluon.jit
def _producer(brought, config: gl.constexpr):
    """Brings the queries of every item, then its blocks of keys and values."""
    SLOTS: gl.constexpr = config.slots
    QUERIES: gl.constexpr = config.queries
    REPEATS: gl.constexpr = config.repeats
    q_desc, k_desc, v_desc, q_tiles, ring, bars, shared, shape = brought
    nbytes: gl.constexpr = k_desc.block_type.nbytes + v_desc.block_type.nbytes
    done = 0
    then = _item(0, shared, shape)
    for turn in range(_turns(shape)):
        item = then
        then = _item(turn + 1, shared, shape)
        for c in gl.static_range(2):
            ready = own_full(bars, c, config)
            mbarrier.wait(own_empty(bars, c, config), (turn & 1) ^ 1)
            mbarrier.expect(ready, q_desc.block_type.nbytes)
            at = [item.batch, item.key_head * REPEATS, item.tile * (2 * QUERIES) + c * QUERIES, 0]
            tma.async_copy_global_to_shared(q_desc, at, ready, q_tiles.index(c))
        count = _passes(item)
        block = _block(shared, item, 0)
        for n in range(0, count):
            i = done + n
            at = [item.batch, item.key_head, block * TILE, 0]
            block = _block(shared, item, n + 1)  # on its way while the ring is full
            ready = full(bars, i, config)
            mbarrier.wait(empty(bars, i, config), phase(i, SLOTS) ^ 1)
            mbarrier.expect(ready, nbytes)
            tma.async_copy_global_to_shared(k_desc, at, ready, ring[0].index(slot(i, SLOTS)))
            tma.async_copy_global_to_shared(v_desc, at, ready, ring[1].index(slot(i, SLOTS)))
        done += count


@gluon.jit
def _scores(q, k_tiles, i, layout: gl.constexpr, config: gl.constexpr):
    """q @ k^T of the ring's block i, begun."""
    zeros = gl.zeros((TILE, TILE), gl.float32, layout)
    k = tile_of(k_tiles, i, config.slots).permute((1, 0))
    return warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)


@gluon.jit
def _softmax(scores, block, word, last, least, member, highest, scale):
    """(probabilities, new maxima in units of log2, sums held by threads) of a block, for the rows that chose it."""
    layout: gl.constexpr = scores.type.layout
    chose = ((word >> member) & 1) != 0
    if (block * TILE + TILE - 1 > least) | (word == 0):  # else some query sees every key of the block
        key = block * TILE + gl.arange(0, TILE, gl.SliceLayout(0, layout))
        sees = gl.expand_dims(key, 0) <= gl.expand_dims(gl.where(chose, last, -1), 1)
        scores = gl.where(sees, scores, float("-inf"))
    highest = raised(highest, gl.where(chose, row_max(scores) * scale, LOWEST))
    p = gl.exp2(scores * scale - gl.expand_dims(gl.where(chose, highest, BEYOND), 1))
    return p, highest, thread_sum(p)


@gluon.jit
def _scaled(x, factor):
    """Rows of x times their factor, in x's layout."""
    return x * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, x.type.layout)), 1)


@gluon.jit
def _attend(
    q, own_read, ring, bars, own, listed, item, start, last, least, member, highest, scale,
    layout: gl.constexpr, config: gl.constexpr,
):  # fmt: skip
    """(accumulator, maxima, sums held by threads, word of the queries that chose something) of a consumer's tile;
    `own_read` hears that q is read. `listed` says where the consumer's list begins, and how long it is."""
    k_tiles, v_tiles = ring
    WIDTH: gl.constexpr = v_tiles.shape[4]
    SLOTS: gl.constexpr = config.slots
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    first, count = listed
    passes = _passes(item)
    place, block, word = _entry(own, first, count, 0, 0)
    _leave_out(bars, start, start + place, config)
    i = start + place
    mbarrier.wait(full(bars, i, config), phase(i, SLOTS))
    scores = _scores(q, k_tiles, i, layout, config)
    then_place, then_block, then_word = _entry(own, first, count, 1, passes)
    mbarrier.arrive(own_read, count=1)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    p, highest, sums = _softmax(scores, block, word, last, least, member, highest, scale)
    seen = word
    p = gl.convert_layout(p.to(v_tiles.dtype), operand)
    acc = gl.zeros((TILE, WIDTH), gl.float32, acc_layout)
    for n in range(1, count):
        before, i = i, start + then_place
        _leave_out(bars, before + 1, i, config)
        mbarrier.wait(full(bars, i, config), phase(i, SLOTS))
        block, word = then_block, then_word
        seen |= word
        scores = _scores(q, k_tiles, i, layout, config)
        acc = warpgroup_mma(p, tile_of(v_tiles, before, SLOTS), acc, is_async=True)
        then_place, then_block, then_word = _entry(own, first, count, n + 1, passes)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        wide, new_highest, new_sums = _softmax(scores, block, word, last, least, member, highest, scale)
        factor = gl.exp2(highest - new_highest)
        highest = new_highest
        sums = _scaled(sums, factor) + new_sums
        # Between the softmax and the wait for the product under which it runs, or else ptxas moves it below that wait.
        mbarrier.wait(full(bars, i, config), phase(i, SLOTS))
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty(bars, before, config), count=1)
        acc = rescaled(acc, factor)
        p = gl.convert_layout(wide.to(v_tiles.dtype), operand)
    acc = warpgroup_mma(p, tile_of(v_tiles, i, SLOTS), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty(bars, i, config), count=1)
    _leave_out(bars, i + 1, start + passes, config)
    return acc, highest, sums, seen


@gluon.jit
def _consumer(given, config: gl.constexpr, c: gl.constexpr):
    """Half of the queries of every item."""
    out_desc, out_tiles, q_tiles, ring, bars, lse, sinks, shared, own, shape, offset, scale = given
    QUERIES: gl.constexpr = config.queries
    REPEATS: gl.constexpr = config.repeats
    WIDTH: gl.constexpr = q_tiles.shape[4]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    row = gl.arange(0, TILE, by_row)
    member = row % QUERIES
    done = 0
    then = _item(0, shared, shape)
    for turn in range(_turns(shape)):
        item = then
        then = _item(turn + 1, shared, shape)  # on its way while this item is worked on
        first_query = item.tile * (2 * QUERIES) + c * QUERIES
        query, head = first_query + member, item.key_head * REPEATS + row // QUERIES
        last = gl.full([TILE], shape.keys - 1, gl.int32, by_row)
        least = shape.keys - 1
        if config.causal:
            last, least = gl.minimum(last, query + offset), gl.minimum(least, first_query + offset)
        highest = gl.full([TILE], LOWEST, gl.float32, by_row)
        if sinks is not None:
            sink = gl.load(sinks + head).to(gl.float32) * LOG2E
            highest = gl.maximum(highest, sink)
        listed = (item.place * 2 + c).to(gl.int64) * shared.most, gl.load(own.counts + item.place * 2 + c)
        mbarrier.wait(own_full(bars, c, config), turn & 1)
        q = q_tiles.index(c).reshape((TILE, WIDTH)).load(gl.DotOperandLayout(0, layout, 2))
        acc, highest, sums, seen = _attend(
            q, own_empty(bars, c, config), ring, bars, own, listed, item, done, last, least, member, highest, scale,
            layout, config,
        )  # fmt: skip
        saw = ((seen >> member) & 1) != 0  # else whatever stands in the query was multiplied with zeros
        sums = gl.where(saw, gl.convert_layout(gl.sum(sums, 1), by_row), 0)
        if sinks is not None:
            highest = gl.maximum(highest, sink)
            sums += gl.exp2(sink - highest)
        acc = _scaled(acc, gl.where(sums > 0, 1 / sums, 0))
        acc = gl.where(gl.expand_dims(gl.convert_layout(saw, gl.SliceLayout(1, acc.type.layout)), 1), acc, 0)
        tma.store_wait(0)
        out = out_tiles.index(c)
        out.reshape((TILE, out_tiles.shape[4])).store(acc.to(out.dtype))
        fence_async_shared()
        at = [item.batch, item.key_head * REPEATS, first_query, 0]
        tma.async_copy_shared_to_global(out_desc, at, out)
        places = lse + (item.batch * shape.heads + head).to(gl.int64) * shape.queries + query
        gl.store(places, (highest + gl.log2(sums)) * LN2, mask=query < shape.queries)
        done += _passes(item)
    settle()


@gluon.jit(
    do_not_specialize=["tile_count", "most", "items", "heads", "key_heads", "alike", "queries", "keys", "offset"]
)
def _kernel(
    q, out, k, v, blocks, counts, own_places, own_blocks, own_members, own_counts, tile_count, most, lse, sinks,
    scale, items, heads, key_heads, alike, queries, keys, offset, config: gl.constexpr,
):  # fmt: skip
    SLOTS: gl.constexpr = config.slots
    shared, own = Listed(blocks, counts, tile_count, most), Taken(own_places, own_blocks, own_members, own_counts)
    shape = Shape(items, heads, key_heads, alike, queries, keys)
    q_tiles, out_tiles = buffers(q, 2), buffers(out, 2)
    ring = (buffers(k, SLOTS), buffers(v, SLOTS))
    bars = barriers_of(config)
    given = (out, out_tiles, q_tiles, ring, bars, lse, sinks, shared, own, shape, offset, scale)
    as_a_team(_consumer, given, _producer, (q, k, v, q_tiles, ring, bars, shared, shape), config)


def _group_tiles(x: Tensor, repeats: int) -> Tiles:
    """Tiles of an addressable `x` [B, H, N, D]: 64 rows, as many heads as share a key head of as many positions."""
    block: list[int] = [1, repeats, ROWS // repeats, x.shape[3]]
    layout: Any = gl.NVMMASharedLayout.get_default_for(block, ELEMENT[x.dtype])
    return Tiles(x, x.shape, x.stride(), block, layout)


def slots_of(width: int, value_width: int) -> int:
    """Blocks of keys and values that the ring has room for."""
    return (SHARED_MEMORY - RESERVED) // (2 * ROWS * (width + value_width)) - 2


def forward_tiles(
    inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor, sinks: Tensor | None,
    lists: tuple[Shared, Own], *, alike: int, causal: bool, scale: float,
) -> None:  # fmt: skip
    """Writes `out` and the natural `lse` of queries over the blocks that their tiles share, of what they chose.

    What a consumer takes of a tile's list leaves out fewer blocks in a row than the ring has places.
    """
    shared, own = lists
    launch(_prepared, (*inputs, out, lse, sinks, shared.blocks, shared.counts, *own), alike, causal, scale)


def _prepared(operands: Operands, alike: int, causal: bool, scale: float) -> Launch:
    q, k, v, out, lse, sinks, blocks, counts, *own = operands
    batch, heads, queries, width = q.shape
    key_heads, keys, value_width = k.shape[1], k.shape[2], v.shape[3]
    repeats, (_, tile_count, most) = heads // key_heads, blocks.shape
    config = TilesConfig(repeats, slots_of(width, value_width), causal)
    items = batch * key_heads * tile_count
    arguments = (
        _group_tiles(q, repeats), _group_tiles(out, repeats), tiles(k, ROWS, width), tiles(v, ROWS, value_width),
        blocks, counts, *own, tile_count, most, lse, sinks, scale * LOG2E.value, items, heads, key_heads, alike,
        queries, keys, keys - queries,
    )  # fmt: skip
    return Launch(_kernel, items, arguments, (config,), 2)
