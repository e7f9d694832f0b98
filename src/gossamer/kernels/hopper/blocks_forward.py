"""Attention forward over blocks of keys that a table lists for each block of queries.

A work item is a block of queries, 64 rows for each consumer of a stream's team. The blocks of queries come through the
stream's ring ahead of the blocks of keys and values that they see. A consumer begins the scores of one block of keys
and the product of the last one's probabilities with its values together; the softmax of the former runs under the
latter. Nothing is masked but partial blocks, the end of the keys and what is outside of a sequence.
"""

from __future__ import annotations

from typing import NamedTuple

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

from ..block_tables import BlockTable
from .bands import Rows
from .blocks import (
    NUMBERS,
    List,
    Table,
    arguments_of,
    bounds_of,
    ends_of,
    in_streams,
    layout_of,
    list_of,
    shown,
    slots_of,
    tile_in,
    turns_of,
    unit_and_rank,
)
from .configs import ROWS, BlocksConfig, Team, blocks_team, tile_width
from .descriptors import tiles
from .division import Divisor, divisor, quotient
from .launch import Launch, Operands, heads_cached, launch
from .operands import Inputs
from .rescale import raised, rescaled
from .ring import LN2, LOG2E, LOWEST, TILE, phase, row_max, settle, slot, thread_sum, tile_of
from .sweep import HEADS, WORK, barriers_of, buffers, empty, full, pass_over, work_given, work_of


class Shape(NamedTuple):
    """Counts from which places follow."""

    heads: Divisor
    repeats: Divisor
    """Query heads of a key head."""
    queries: gl.tensor
    keys: gl.tensor


class Item(NamedTuple):
    """A block of queries and what it sees; `head` is the first of those that the team works on."""

    batch: gl.tensor
    head: gl.tensor
    key_head: gl.tensor
    row: gl.tensor
    seen: List


@gluon.jit
def query_item(turn, stream: gl.constexpr, table, work, shape, config: gl.constexpr):
    """A stream's item of a turn."""
    CONSUMERS: gl.constexpr = config.team.consumers
    HEADS_TOGETHER: gl.constexpr = CONSUMERS if config.team.by_heads else 1
    SIZE: gl.constexpr = config.size
    unit, rank = unit_and_rank(turn, stream, work, config)
    head = unit * HEADS_TOGETHER
    batch = quotient(head, shape.heads)
    head -= batch * shape.heads.value
    layout = layout_of(table, batch, head)
    row = gl.load(table.order + layout + rank)
    return Item(batch, head, quotient(head, shape.repeats), row * SIZE, list_of(table, layout + row))


@gluon.jit
def own_place(item, consumer: gl.constexpr, config: gl.constexpr):
    """(head, first row, which 64 rows of their block) of a consumer's tile."""
    HEADS_TOGETHER: gl.constexpr = config.team.by_heads
    if HEADS_TOGETHER:
        return item.head + consumer, item.row, 0
    else:
        return item.head, item.row + consumer * TILE, consumer


@gluon.jit
def key_blocks(item):
    """How many blocks of keys pass through the ring for an item: one at least."""
    return gl.maximum(item.seen.count, 1)


@gluon.jit
def bring_keys(key, value, ring, bars, table, item, start, config: gl.constexpr):
    """Blocks of keys and values of an item, from the ring's block `start` on."""
    SLOTS: gl.constexpr = config.slots
    nbytes: gl.constexpr = key.block_type.nbytes + value.block_type.nbytes
    count = key_blocks(item)
    some = item.seen.count > 0
    block = gl.load(table.blocks + item.seen.first, mask=some, other=0)
    for n in range(0, count):
        i = start + n
        at = [item.batch, item.key_head, block * config.size, 0]
        then = item.seen.first + gl.minimum(n + 1, count - 1)
        block = gl.load(table.blocks + then, mask=some, other=0)  # on its way while the ring is full
        ready = full(bars, i, config)
        mbarrier.wait(empty(bars, i, config), phase(i, SLOTS) ^ 1)
        mbarrier.expect(ready, nbytes)
        tma.async_copy_global_to_shared(key, at, ready, ring[0].index(slot(i, SLOTS)))
        tma.async_copy_global_to_shared(value, at, ready, ring[1].index(slot(i, SLOTS)))


@gluon.jit
def seen_bounds(table, item, within, shape, config: gl.constexpr):
    """The keys that exist for an item; none where its list is empty."""
    begin, end = ends_of(within, item.batch, shape.keys)
    return bounds_of(table, item.seen, begin, end, config)


@gluon.jit
def in_sequence(rows, within, batch, queries):
    """Which rows belong to their sequence."""
    begin, end = ends_of(within, batch, queries)
    return (rows >= begin) & (rows < end)


@gluon.jit
def _scores(q, k_blocks, i, config: gl.constexpr):
    """q @ k^T of the ring's block i, begun."""
    SIZE: gl.constexpr = config.size
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SIZE, 16])
    zeros = gl.zeros((TILE, SIZE), gl.float32, layout)
    k = tile_of(k_blocks, i, config.slots).permute((1, 0))
    return warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)


@gluon.jit
def _in_tiles(scores, layout: gl.constexpr):
    """[64, size] as tiles [64, 64]: what a thread holds stays where it is."""
    if scores.shape[1] == TILE:
        return (scores,)
    else:
        a, b = gl.permute(gl.reshape(scores, (TILE, 2, TILE)), (0, 2, 1)).split()
        return gl.convert_layout(a, layout, assert_trivial=True), gl.convert_layout(b, layout, assert_trivial=True)


@gluon.jit
def _add_values(acc, p, v_tiles, i, config: gl.constexpr):
    """acc + p @ v over the tiles of the ring's block i, begun."""
    PARTS: gl.constexpr = config.parts
    for part in gl.static_range(PARTS):
        acc = warpgroup_mma(p[part], tile_in(v_tiles, i, part, config), acc, is_async=True)
    return acc


@gluon.jit
def _softmax(scores, table, seen, block, bounds, part, highest, scale, config: gl.constexpr):
    """(probabilities, new maxima in units of log2, sums held by threads) of a list's block."""
    PARTS: gl.constexpr = config.parts
    shown_scores = ()
    for other in gl.static_range(PARTS):
        n = block * PARTS + other
        shown_scores += (shown(scores[other], table, seen, n, bounds, part, float("-inf"), config),)
    greatest = shown_scores[0]
    for other in gl.static_range(1, PARTS):
        greatest = gl.maximum(greatest, shown_scores[other])
    highest = raised(highest, row_max(greatest) * scale)
    p = ()
    for other in gl.static_range(PARTS):
        p += (gl.exp2(shown_scores[other] * scale - gl.expand_dims(highest, 1)),)
    total = p[0]
    for other in gl.static_range(1, PARTS):
        total += p[other]
    return p, highest, thread_sum(total)


@gluon.jit
def _rounded(p, dtype: gl.constexpr, layout: gl.constexpr):
    """Probabilities as operands of matrix instructions."""
    rounded = ()
    for part in gl.static_range(len(p)):
        rounded += (gl.convert_layout(p[part].to(dtype), layout),)
    return rounded


@gluon.jit
def _scaled(x, factor):
    """Rows of x times their factor, in x's layout."""
    return x * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, x.type.layout)), 1)


@gluon.jit
def _attend(
    q, q_block, ring, bars, table, item, bounds, start, part, highest, scale,
    layout: gl.constexpr, config: gl.constexpr,
):  # fmt: skip
    """(accumulator, maxima, sums held by threads) of a tile of queries; the ring's `q_block` hears that q is read."""
    k_tiles, v_tiles = ring
    WIDTH: gl.constexpr = v_tiles.shape[4]
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    SLOTS: gl.constexpr = config.slots
    seen = item.seen
    blocks = key_blocks(item)
    mbarrier.wait(full(bars, start, config), phase(start, SLOTS))
    scores = _scores(q, k_tiles, start, config)
    mbarrier.arrive(empty(bars, q_block, config), count=1)
    scores = _in_tiles(warpgroup_mma_wait(0, deps=(scores,)), layout)
    wide, highest, sums = _softmax(scores, table, seen, 0, bounds, part, highest, scale, config)
    p = _rounded(wide, v_tiles.dtype, operand)
    acc = gl.zeros((TILE, WIDTH), gl.float32, acc_layout)
    mbarrier.wait(full(bars, start + 1, config), phase(start + 1, SLOTS), pred=blocks > 1)
    for block in range(1, blocks):
        i = start + block
        scores = _scores(q, k_tiles, i, config)
        acc = _add_values(acc, p, v_tiles, i - 1, config)
        scores = _in_tiles(warpgroup_mma_wait(config.parts, deps=(scores,)), layout)
        wide, new_highest, new_sums = _softmax(scores, table, seen, block, bounds, part, highest, scale, config)
        factor = gl.exp2(highest - new_highest)
        highest = new_highest
        sums = _scaled(sums, factor) + new_sums
        # Between the softmax and the wait for the product under which it runs, or else ptxas moves it below that wait.
        mbarrier.wait(full(bars, i + 1, config), phase(i + 1, SLOTS), pred=block + 1 < blocks)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty(bars, i - 1, config), count=1)
        acc = rescaled(acc, factor)
        p = _rounded(wide, v_tiles.dtype, operand)
    last = start + blocks - 1
    acc = _add_values(acc, p, v_tiles, last, config)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty(bars, last, config), count=1)
    return acc, highest, sums


@gluon.jit
def _write(out_desc, out, lse, place, acc, highest, sums, shape, layout: gl.constexpr):
    """Divides by the sums and stores a tile of `out` and `lse`; what lies beyond the tensors is left alone."""
    batch, head, row = place
    acc = _scaled(acc, gl.where(sums > 0, 1 / sums, 0))
    tma.store_wait(0)
    out.reshape((out.shape[2], out.shape[3])).store(acc.to(out.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [batch, head, row, 0], out)
    pointer = lse.pointer + batch.to(gl.int64) * lse.batch + head.to(gl.int64) * lse.head
    rows = row + gl.arange(0, TILE, gl.SliceLayout(1, layout))
    gl.store(pointer + rows, (highest + gl.log2(sums)) * LN2, mask=rows < shape.queries)


@gluon.jit
def _consumer(given, room, config: gl.constexpr, c: gl.constexpr, stream: gl.constexpr):
    """One tile of queries of every item of a stream."""
    table, out_desc, lse, sinks, within, work, shape, scale = given
    out_tiles, ring, bars = room
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    BEFORE: gl.constexpr = c // config.parts  # blocks of the team that this consumer's comes after
    base = 0
    then = query_item(0, stream, table, work, shape, config)
    for turn in range(turns_of(work, stream, config)):
        item = then
        then = query_item(turn + 1, stream, table, work, shape, config)  # on its way while this item is worked on
        head, row, part = own_place(item, c, config)
        bounds = seen_bounds(table, item, within, shape, config)
        highest = gl.full([TILE], LOWEST, gl.float32, gl.SliceLayout(1, layout))
        if sinks is not None:
            sink = gl.load(sinks + head).to(gl.float32) * LOG2E
            highest = gl.maximum(highest, sink)
        own, start = base + BEFORE, base + config.own_blocks
        pass_over(bars, base, own, config)
        mbarrier.wait(full(bars, own, config), phase(own, config.slots))
        q = tile_in(ring[0], own, c % config.parts, config).load(gl.DotOperandLayout(0, layout, 2))
        pass_over(bars, own + 1, start, config)
        acc, highest, sums = _attend(
            q, own, ring, bars, table, item, bounds, start, part, highest, scale, layout, config
        )
        sums = gl.convert_layout(gl.sum(sums, 1), gl.SliceLayout(1, layout))
        if within is not None and not config.copies:
            rows = row + gl.arange(0, TILE, gl.SliceLayout(1, layout))
            inside = in_sequence(rows, within, item.batch, shape.queries)
            sums, highest = gl.where(inside, sums, 0.0), gl.where(inside, highest, LOWEST)
            acc = _scaled(acc, inside.to(gl.float32))  # a sink would leave them a sum to divide by
        if sinks is not None:
            highest = gl.maximum(highest, sink)
            sums += gl.exp2(sink - highest)
        _write(out_desc, out_tiles.index(c), lse, (item.batch, head, row), acc, highest, sums, shape, layout)
        base = start + key_blocks(item)
    settle()


@gluon.jit
def _producer(brought, room, config: gl.constexpr, stream: gl.constexpr):
    """Brings the blocks of queries of each item of a stream, then its blocks of keys and values."""
    SLOTS: gl.constexpr = config.slots
    OWN: gl.constexpr = config.own_blocks
    table, q_desc, k_desc, v_desc, work, shape = brought
    ring, bars = room[1], room[2]
    done = 0
    then = query_item(0, stream, table, work, shape, config)
    for turn in range(turns_of(work, stream, config)):
        item = then
        then = query_item(turn + 1, stream, table, work, shape, config)
        for own in gl.static_range(OWN):
            i = done + own
            ready = full(bars, i, config)
            at = [item.batch, item.head + own, item.row, 0]
            mbarrier.wait(empty(bars, i, config), phase(i, SLOTS) ^ 1)
            mbarrier.expect(ready, q_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, at, ready, ring[0].index(slot(i, SLOTS)))
        bring_keys(k_desc, v_desc, ring, bars, table, item, done + OWN, config)
        done += OWN + key_blocks(item)


@gluon.jit
def _room(out, k, v, config: gl.constexpr):
    """(tiles to store from, ring, barriers) of one stream."""
    SLOTS: gl.constexpr = config.slots
    CONSUMERS: gl.constexpr = config.team.consumers
    out_tiles = buffers(out, CONSUMERS)
    return out_tiles, (buffers(k, SLOTS), buffers(v, SLOTS)), barriers_of(config)


@gluon.jit(do_not_specialize=[*NUMBERS, *WORK, *HEADS, "lse_batch", "lse_head"])
def _kernel(
    q, out, k, v, starts, counts, blocks, tile, tiles, layout, order, rows, layout_heads, within, sinks,
    lse, lse_batch, lse_head, scale, heads, heads_reciprocal, repeats, repeats_reciprocal, queries, keys,
    items, ranks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
    config: gl.constexpr,
):  # fmt: skip
    STREAMS: gl.constexpr = config.streams
    table = Table(starts, counts, blocks, tile, tiles, layout, order, rows, layout_heads)
    work = work_given(
        items, ranks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal
    )  # fmt: skip
    shape = Shape(Divisor(heads, heads_reciprocal), Divisor(repeats, repeats_reciprocal), queries, keys)
    lse_rows = Rows(lse, lse_batch, lse_head)
    rooms = (_room(out, k, v, config),)
    for _ in gl.static_range(STREAMS - 1):
        rooms += (_room(out, k, v, config),)
    given = (table, out, lse_rows, sinks, within, work, shape, scale)
    in_streams(_consumer, given, _producer, (table, q, k, v, work, shape), rooms, config)


def blocks_forward(
    inputs: Inputs, by_queries: BlockTable, out: Tensor, lse: Tensor,
    *, scale: float, within: Tensor | None = None, sinks: Tensor | None = None, copies: bool = False,
) -> None:  # fmt: skip
    """Writes `out` and the natural `lse` of queries that see the blocks of a table, masks `packed`.

    The scale is positive. `within`, int32 [B, 2], says which positions of each batch row exist: others are not seen,
    and see nothing. Queries that are `copies` of others have no position: all of them see.
    """
    given = *inputs, out, lse, sinks, within, *by_queries[1:]
    launch(_prepared, given, by_queries.size, scale, copies and within is not None)


def _prepared(operands: Operands, size: int, scale: float, copies: bool) -> Launch:
    q, k, v, out, lse, sinks, within, *rest = operands
    table = BlockTable(size, *rest)
    heads, repeats = q.shape[1], q.shape[1] // k.shape[1]
    widths = tile_width(q.shape[3]), tile_width(v.shape[3])
    team, streams, work = query_work(q, k, v, table)
    arguments = (
        *(tiles(q, size, widths[0]), tiles(out, ROWS, widths[1]), tiles(k, size, widths[0]), tiles(v, size, widths[1])),
        *(*arguments_of(table, heads), within, sinks, lse, lse.stride(0), lse.stride(1), scale * LOG2E.value),
        *(*divisor(heads), *divisor(repeats), q.shape[2], k.shape[2], *work),
    )
    slots = slots_of(team.consumers * widths[1], sum(widths), streams, size // ROWS)
    config = BlocksConfig(team, streams, size, slots, copies=copies)
    return Launch(_kernel, -(-work[0] // streams), arguments, (config,), config.consumers)


def query_work(q: Tensor, k: Tensor, v: Tensor, table: BlockTable) -> tuple[Team, int, tuple[int, ...]]:
    """(team, streams, what kernels take as their work) where teams own blocks of queries."""
    batch, heads = q.shape[:2]
    team, streams = query_team(q, k, v, table)
    cached = max(1, heads_cached(k, v) * (heads // k.shape[1]) // team.heads_together)
    return team, streams, work_of(batch * heads // team.heads_together, table.order.shape[1], cached)


def query_team(q: Tensor, k: Tensor, v: Tensor, table: BlockTable) -> tuple[Team, int]:
    """(team, streams of a program) that own blocks of queries."""
    alike = len(table.starts) == 1  # then heads that share keys share their lists too
    repeats = q.shape[1] // k.shape[1] if alike else None
    return blocks_team(table.size, tile_width(q.shape[3]), tile_width(v.shape[3]), repeats)
