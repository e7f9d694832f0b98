"""The gradient of queries over the blocks of keys that a table lists for each block of queries.

Work is dealt out as in the forward, and the tiles of Q, dO and O come through the ring too. The kernel forms
delta = rowsum(dO O) less the log-sum-exp's gradient, finishes dQ in registers, and leaves log-sum-exp and delta for
the gradients of keys and values (see `blocks_backward_keys`).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .bands import Rows
from .blocks import NUMBERS, Table, in_streams, shown, turns_of
from .blocks_forward import Shape, bring_keys, in_sequence, key_tiles, own_place, query_item, seen_bounds
from .division import Divisor
from .ring import LOG2E, TILE, phase, settle, slot, tile_of, times_transposed
from .sweep import (
    HEADS,
    WORK,
    barriers_of,
    buffers,
    empty,
    full,
    operand_of,
    pass_over,
    renewed,
    words_of,
    work_given,
)
from .sweep import Place as RowPlace
from .sweep_backward_queries import ABSENT, STRIDES, row_values, store_auxiliary

OWN_TILES = gl.constexpr(2)
"""Tiles of the ring that a consumer's own take: Q beside dO, then O."""


@gluon.jit
def _bring_own(own, ring, bars, at, i, config: gl.constexpr):
    """One consumer's tiles of Q, dO and O, as tiles i and i + 1 of the ring."""
    q, grad_out, out = own
    SLOTS: gl.constexpr = config.slots
    ready = full(bars, i, config)
    mbarrier.wait(empty(bars, i, config), phase(i, SLOTS) ^ 1)
    mbarrier.expect(ready, q.block_type.nbytes + grad_out.block_type.nbytes)
    tma.async_copy_global_to_shared(q, at, ready, ring[0].index(slot(i, SLOTS)))
    tma.async_copy_global_to_shared(grad_out, at, ready, ring[1].index(slot(i, SLOTS)))
    ready = full(bars, i + 1, config)
    mbarrier.wait(empty(bars, i + 1, config), phase(i + 1, SLOTS) ^ 1)
    mbarrier.expect(ready, out.block_type.nbytes)
    tma.async_copy_global_to_shared(out, at, ready, ring[1].index(slot(i + 1, SLOTS)))


@gluon.jit
def _producer(brought, room, config: gl.constexpr, stream: gl.constexpr):
    """Brings the tiles of each item of a stream."""
    CONSUMERS: gl.constexpr = config.team.consumers
    table, own, k, v, work, shape = brought
    ring, bars = room[1], room[2]
    done = 0
    then = query_item(0, stream, table, work, shape, config)
    for turn in range(turns_of(work, stream, config)):
        item = then
        then = query_item(turn + 1, stream, table, work, shape, config)
        for c in gl.static_range(CONSUMERS):
            head, row = own_place(item, c, config)[:2]
            _bring_own(own, ring, bars, [item.batch, head, row, 0], done + OWN_TILES * c, config)
        done += OWN_TILES * CONSUMERS
        bring_keys(k, v, ring, bars, table, item, done, config)
        done += key_tiles(item, config)


@gluon.jit
def _has_come(words, delta):
    """True, but only once every word and every delta is in registers.

    Neither a barrier of threads nor an arrival waits for loads that are on their way, and a tile that is handed back
    too early is written over under them. `launch` gives the grid one row, and nobody tells ptxas that this is no
    question.
    """
    words = gl.convert_layout(gl.max(words, 1), delta.type.layout)
    return (gl.max(words | delta.to(gl.int32, bitcast=True), 0) & gl.program_id(1)) == 0


@gluon.jit
def _own(ring, bars, i, layout: gl.constexpr, config: gl.constexpr):
    """(Q as words, dO as words, rowsum(dO O)) of the tiles i and i + 1 of the ring, which are handed back."""
    SLOTS: gl.constexpr = config.slots
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    mbarrier.wait(full(bars, i, config), phase(i, SLOTS))
    grad_out = tile_of(ring[1], i, SLOTS).load(operand)
    q = words_of(tile_of(ring[0], i, SLOTS).load(operand))
    mbarrier.wait(full(bars, i + 1, config), phase(i + 1, SLOTS))
    out = tile_of(ring[1], i + 1, SLOTS).load(operand)
    delta = gl.convert_layout(gl.sum(grad_out.to(gl.float32) * out.to(gl.float32), 1), gl.SliceLayout(1, layout))
    here = _has_come(q, delta)
    mbarrier.arrive(empty(bars, i, config), count=1, pred=here)
    mbarrier.arrive(empty(bars, i + 1, config), count=1, pred=here)
    return q, words_of(grad_out), delta


@gluon.jit
def _add_keys(
    dq, q, grad_out, lse, delta, scale, table, item, bounds, part, ring, bars, start, config: gl.constexpr,
):  # fmt: skip
    """dQ, unscaled, plus what an item's tiles, from `start` of the ring on, give. Q and dO are words, see `renewed`."""
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, dq.type.layout, 2)
    own: gl.constexpr = gl.DotOperandLayout(0, scores, 2)
    SLOTS: gl.constexpr = config.slots
    for n in range(0, key_tiles(item, config)):
        i = start + n
        mbarrier.wait(full(bars, i, config), phase(i, SLOTS))
        k, v = tile_of(ring[0], i, SLOTS), tile_of(ring[1], i, SLOTS)
        q, grad_out = renewed(q), renewed(grad_out)
        s = times_transposed(operand_of(q, k.dtype, own), k, scores)
        dp = times_transposed(operand_of(grad_out, v.dtype, own), v, scores)
        s = warpgroup_mma_wait(1, deps=(s,))
        p = shown(gl.exp2(s * scale - lse), table, item.seen, n, bounds, part, 0.0, config)
        dp = warpgroup_mma_wait(0, deps=(dp,))
        ds = (p * (dp - delta)).to(k.dtype)
        dq = warpgroup_mma(gl.convert_layout(ds, operand), k, dq, is_async=True)
        dq = warpgroup_mma_wait(0, deps=(dq,))
        mbarrier.arrive(empty(bars, i, config), count=1)
    return dq


@gluon.jit
def _consumer(given, room, config: gl.constexpr, c: gl.constexpr, stream: gl.constexpr):
    """One tile of queries of every item of a stream."""
    table, lse_rows, grad_lse_rows, within, scale, dq_desc, aux, work, shape = given
    dq_tiles, ring, bars = room
    CONSUMERS: gl.constexpr = config.team.consumers
    WIDTH: gl.constexpr = dq_tiles.shape[4]
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    rows_layout: gl.constexpr = gl.SliceLayout(1, scores)
    base = 0
    then = query_item(0, stream, table, work, shape, config)
    for turn in range(turns_of(work, stream, config)):
        item = then
        then = query_item(turn + 1, stream, table, work, shape, config)  # on its way while this item is worked on
        head, row, part = own_place(item, c, config)
        place = RowPlace(item.batch, head, item.key_head, row)
        lse = row_values(lse_rows, place, shape.queries, rows_layout)
        start = base + OWN_TILES * CONSUMERS
        pass_over(bars, base, base + OWN_TILES * c, config)
        q, grad_out, delta = _own(ring, bars, base + OWN_TILES * c, scores, config)
        pass_over(bars, base + OWN_TILES * (c + 1), start, config)
        if grad_lse_rows.pointer is not None:
            delta -= row_values(grad_lse_rows, place, shape.queries, rows_layout)
        absent = lse == float("-inf")
        if within is not None and not config.copies:
            absent |= ~in_sequence(row + gl.arange(0, TILE, rows_layout), within, item.batch, shape.queries)
        delta = gl.where(absent, 0.0, delta)
        lse = gl.where(absent, ABSENT, lse)
        store_auxiliary(aux, lse / scale, delta, place, shape)
        lse, delta = gl.expand_dims(lse * LOG2E, 1), gl.expand_dims(delta, 1)
        dq = _add_keys(
            gl.zeros((TILE, WIDTH), gl.float32, wide), q, grad_out, lse, delta, scale * LOG2E,
            table, item, seen_bounds(item, within, shape), part, ring, bars, start, config,
        )  # fmt: skip
        tma.store_wait(0)
        tile_of(dq_tiles, c, CONSUMERS).store((dq * scale).to(dq_tiles.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dq_desc, [item.batch, head, row, 0], dq_tiles.index(c))
        base = start + key_tiles(item, config)
    settle()


@gluon.jit
def _room(dq, k, v, config: gl.constexpr):
    """(tiles to store from, ring, barriers) of one stream."""
    SLOTS: gl.constexpr = config.slots
    CONSUMERS: gl.constexpr = config.team.consumers
    return buffers(dq, CONSUMERS), (buffers(k, SLOTS), buffers(v, SLOTS)), barriers_of(config)


@gluon.jit(do_not_specialize=[*NUMBERS, *WORK, *HEADS, *STRIDES])
def queries_kernel(
    q, grad_out, out, dq, aux, k, v, starts, counts, blocks, tile, tiles, layout, order, rows, layout_heads,
    within, lse, lse_batch, lse_head, grad_lse, grad_lse_batch, grad_lse_head,
    scale, heads, heads_reciprocal, repeats, repeats_reciprocal, queries, keys,
    items, ranks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
    config: gl.constexpr,
):  # fmt: skip
    """Gradients of queries and their auxiliary rows."""
    STREAMS: gl.constexpr = config.streams
    table = Table(starts, counts, blocks, tile, tiles, layout, order, rows, layout_heads)
    work = work_given(
        items, ranks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal
    )  # fmt: skip
    shape = Shape(Divisor(heads, heads_reciprocal), Divisor(repeats, repeats_reciprocal), queries, keys)
    lse_rows, grad_lse_rows = Rows(lse, lse_batch, lse_head), Rows(grad_lse, grad_lse_batch, grad_lse_head)
    rooms = (_room(dq, k, v, config),)
    for _ in gl.static_range(STREAMS - 1):
        rooms += (_room(dq, k, v, config),)
    given = (table, lse_rows, grad_lse_rows, within, scale, dq, aux, work, shape)
    in_streams(_consumer, given, _producer, (table, (q, grad_out, out), k, v, work, shape), rooms, config)
