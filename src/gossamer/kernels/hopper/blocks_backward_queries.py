"""The gradient of queries over the blocks of keys that a table lists for each block of queries.

Work is dealt out as in the forward, and the blocks of Q, dO and O come through the ring too. The kernel forms
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
from .blocks import NUMBERS, Table, in_streams, shown, tile_in, turns_of
from .blocks_forward import Shape, bring_keys, in_sequence, key_blocks, own_place, query_item, seen_bounds
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

OWN_PLACES = gl.constexpr(2)
"""Places of the ring that a block of the team's own takes: Q beside dO, then O."""


@gluon.jit
def _bring_own(own, ring, bars, at, i, config: gl.constexpr):
    """A block of Q and dO as block i of the ring, and one of O as the next."""
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
    """Brings the blocks of each item of a stream."""
    OWN: gl.constexpr = config.own_blocks
    table, own, k, v, work, shape = brought
    ring, bars = room[1], room[2]
    done = 0
    then = query_item(0, stream, table, work, shape, config)
    for turn in range(turns_of(work, stream, config)):
        item = then
        then = query_item(turn + 1, stream, table, work, shape, config)
        for n in gl.static_range(OWN):
            _bring_own(own, ring, bars, [item.batch, item.head + n, item.row, 0], done + OWN_PLACES * n, config)
        done += OWN_PLACES * OWN
        bring_keys(k, v, ring, bars, table, item, done, config)
        done += key_blocks(item)


@gluon.jit
def _delta(grad_out, ring, bars, i, part: gl.constexpr, layout: gl.constexpr, config: gl.constexpr):
    """rowsum(dO O) of a tile: O comes with the ring's block i, dO is words."""
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    mbarrier.wait(full(bars, i, config), phase(i, config.slots))
    out = tile_in(ring[1], i, part, config).load(operand)
    products = operand_of(grad_out, out.dtype, operand).to(gl.float32) * out.to(gl.float32)
    return gl.convert_layout(gl.sum(products, 1), gl.SliceLayout(1, layout))


@gluon.jit
def _begin(q, grad_out, ring, i, other: gl.constexpr, layout: gl.constexpr, config: gl.constexpr):
    """(S, dP) of a tile of the ring's block i of keys, begun. Q and dO are words, see `renewed`."""
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    k, v = tile_in(ring[0], i, other, config), tile_in(ring[1], i, other, config)
    s = times_transposed(operand_of(q, k.dtype, operand), k, layout)
    return s, times_transposed(operand_of(grad_out, v.dtype, operand), v, layout)


@gluon.jit
def _finish(
    dq, s, dp, lse, delta, scale, table, seen, n, bounds, part, ring, i, other: gl.constexpr, config: gl.constexpr,
):  # fmt: skip
    """dQ, unscaled, plus what the n-th tile of a list gives, of which S and dP are begun."""
    operand: gl.constexpr = gl.DotOperandLayout(0, dq.type.layout, 2)
    k = tile_in(ring[0], i, other, config)
    s = warpgroup_mma_wait(1, deps=(s,))
    p = shown(gl.exp2(s * scale - lse), table, seen, n, bounds, part, 0.0, config)
    dp = warpgroup_mma_wait(0, deps=(dp,))
    ds = (p * (dp - delta)).to(k.dtype)
    dq = warpgroup_mma(gl.convert_layout(ds, operand), k, dq, is_async=True)
    return warpgroup_mma_wait(0, deps=(dq,))


@gluon.jit
def _add_keys(
    dq, q, grad_out, begun, lse, delta, scale, table, item, bounds, part, ring, bars, start, config: gl.constexpr,
):  # fmt: skip
    """dQ, unscaled, plus what an item's blocks, the ring's from `start` on, give; `begun` are the first tile's."""
    PARTS: gl.constexpr = config.parts
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    seen = item.seen
    s, dp = begun
    dq = _finish(dq, s, dp, lse, delta, scale, table, seen, 0, bounds, part, ring, start, 0, config)
    for other in gl.static_range(1, PARTS):
        s, dp = _begin(q, grad_out, ring, start, other, layout, config)
        dq = _finish(dq, s, dp, lse, delta, scale, table, seen, other, bounds, part, ring, start, other, config)
    mbarrier.arrive(empty(bars, start, config), count=1)
    for block in range(1, key_blocks(item)):
        i = start + block
        mbarrier.wait(full(bars, i, config), phase(i, config.slots))
        for other in gl.static_range(PARTS):
            n = block * PARTS + other
            q, grad_out = renewed(q), renewed(grad_out)
            s, dp = _begin(q, grad_out, ring, i, other, layout, config)
            dq = _finish(dq, s, dp, lse, delta, scale, table, seen, n, bounds, part, ring, i, other, config)
        mbarrier.arrive(empty(bars, i, config), count=1)
    return dq


@gluon.jit
def _consumer(given, room, config: gl.constexpr, c: gl.constexpr, stream: gl.constexpr):
    """One tile of queries of every item of a stream."""
    table, lse_rows, grad_lse_rows, within, scale, dq_desc, aux, work, shape = given
    dq_tiles, ring, bars = room
    CONSUMERS: gl.constexpr = config.team.consumers
    BEFORE: gl.constexpr = c // config.parts * OWN_PLACES  # places of the team's blocks that come before this one's
    WIDTH: gl.constexpr = dq_tiles.shape[4]
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    rows_layout: gl.constexpr = gl.SliceLayout(1, scores)
    operand: gl.constexpr = gl.DotOperandLayout(0, scores, 2)
    base = 0
    then = query_item(0, stream, table, work, shape, config)
    for turn in range(turns_of(work, stream, config)):
        item = then
        then = query_item(turn + 1, stream, table, work, shape, config)  # on its way while this item is worked on
        head, row, part = own_place(item, c, config)
        place = RowPlace(item.batch, head, item.key_head, row)
        lse = row_values(lse_rows, place, shape.queries, rows_layout)
        bounds = seen_bounds(table, item, within, shape, config)
        own, start = base + BEFORE, base + OWN_PLACES * config.own_blocks
        pass_over(bars, base, own, config)
        mbarrier.wait(full(bars, own, config), phase(own, config.slots))
        q = words_of(tile_in(ring[0], own, c % config.parts, config).load(operand))
        grad_out = words_of(tile_in(ring[1], own, c % config.parts, config).load(operand))
        pass_over(bars, own + OWN_PLACES, start, config)
        mbarrier.wait(full(bars, start, config), phase(start, config.slots))
        begun = _begin(q, grad_out, ring, start, 0, scores, config)  # what follows runs under it
        delta = _delta(grad_out, ring, bars, own + 1, c % config.parts, scores, config)
        if grad_lse_rows.pointer is not None:
            delta -= row_values(grad_lse_rows, place, shape.queries, rows_layout)
        absent = lse == float("-inf")
        if within is not None and not config.copies:
            absent |= ~in_sequence(row + gl.arange(0, TILE, rows_layout), within, item.batch, shape.queries)
        delta = gl.where(absent, 0.0, delta)
        lse = gl.where(absent, ABSENT, lse)
        store_auxiliary(aux, lse / scale, delta, place, shape)
        # Here, where every load has come: neither a barrier nor an arrival waits for those that are on their way, but
        # the products above read Q and dO, and what was stored was made of O.
        mbarrier.arrive(empty(bars, own, config), count=1)
        mbarrier.arrive(empty(bars, own + 1, config), count=1)
        lse, delta = gl.expand_dims(lse * LOG2E, 1), gl.expand_dims(delta, 1)
        dq = _add_keys(
            gl.zeros((TILE, WIDTH), gl.float32, wide), q, grad_out, begun, lse, delta, scale * LOG2E,
            table, item, bounds, part, ring, bars, start, config,
        )  # fmt: skip
        tma.store_wait(0)
        tile_of(dq_tiles, c, CONSUMERS).store((dq * scale).to(dq_tiles.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dq_desc, [item.batch, head, row, 0], dq_tiles.index(c))
        base = start + key_blocks(item)
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
