"""The gradients of keys and values over the blocks of queries that a table lists for each block of keys.

A work item is a block of keys, 64 rows for each consumer of a stream's team, and all that see it in every head of the
key's group, each head by its own list; dK and dV are finished in registers. Scores are computed transposed, with each
query's auxiliary row subtracted in the product, as in `sweep_backward_keys`.
"""

from __future__ import annotations

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .blocks import (
    NUMBERS,
    Table,
    ends_of,
    in_streams,
    layout_of,
    list_of,
    shown,
    tile_at,
    turns_of,
    unit_and_rank,
)
from .division import Divisor, quotient
from .ring import LOG2E, TILE, opaque, phase, settle, slot, tile_of
from .sweep import WORK, barriers_of, buffers, empty, full, own_empty, own_full, work_given
from .sweep_backward_keys import less, picking


class Shape(NamedTuple):
    """Counts from which places follow."""

    key_heads: Divisor
    repeats: gl.tensor
    """Query heads of a key head."""
    queries: gl.tensor
    keys: gl.tensor


class Item(NamedTuple):
    """A block of keys: the `number`-th of its head."""

    batch: gl.tensor
    key_head: gl.tensor
    number: gl.tensor


@gluon.jit
def _matrix(turn, stream: gl.constexpr, work, shape, config: gl.constexpr):
    """(batch row, key head, how many of its blocks come before) of a stream's item of a turn."""
    unit, rank = unit_and_rank(turn, stream, work, config)
    batch = quotient(unit, shape.key_heads)
    return batch, unit - batch * shape.key_heads.value, rank


@gluon.jit
def _item(turn, stream: gl.constexpr, table, work, shape, config: gl.constexpr):
    """A stream's item of a turn: the first head's list says how heavy it is."""
    batch, key_head, rank = _matrix(turn, stream, work, shape, config)
    number = gl.load(table.order + layout_of(table, batch, key_head * shape.repeats) + rank)
    return Item(batch, key_head, number)


@gluon.jit
def _seen_by(table, item, repeat, shape):
    """What a head of the item's group has in the item's row."""
    return list_of(table, layout_of(table, item.batch, item.key_head * shape.repeats + repeat) + item.number)


@gluon.jit
def _bring_own(own, tiles, bars, item, turn, consumer: gl.constexpr, config: gl.constexpr):
    """One consumer's tiles of K and V."""
    k, v = own
    SIZE: gl.constexpr = config.size
    DEPTH: gl.constexpr = config.own // config.team.consumers
    here = consumer * DEPTH + slot(turn, DEPTH)
    ready = own_full(bars, here, config)
    mbarrier.wait(own_empty(bars, here, config), phase(turn, DEPTH) ^ 1)
    mbarrier.expect(ready, k.block_type.nbytes + v.block_type.nbytes)
    at = [item.batch, item.key_head, item.number * SIZE + consumer * TILE, 0]
    tma.async_copy_global_to_shared(k, at, ready, tiles[0].index(here))
    tma.async_copy_global_to_shared(v, at, ready, tiles[1].index(here))


@gluon.jit
def _bring_queries(descriptors, ring, bars, table, seen, batch, head, start, config: gl.constexpr):
    """Tiles of Q, dO and auxiliary rows that a list names, from tile `start` of the ring on."""
    SIZE: gl.constexpr = config.size
    SLOTS: gl.constexpr = config.slots
    nbytes: gl.constexpr = descriptors[0].block_type.nbytes + descriptors[1].block_type.nbytes
    PARTS: gl.constexpr = SIZE // TILE
    some = seen.count > 0
    block = gl.load(table.blocks + seen.first, mask=some, other=0)
    count = seen.count * PARTS
    for n in range(0, count):
        i = start + n
        part = tile_at(table, seen, n, config)[1]
        at = [batch, head, block * SIZE + part * TILE, 0]
        then = tile_at(table, seen, gl.minimum(n + 1, count - 1), config)[0]
        block = gl.load(table.blocks + then)  # on its way while the ring is full
        ready = full(bars, i, config)
        mbarrier.wait(empty(bars, i, config), phase(i, SLOTS) ^ 1)
        mbarrier.expect(ready, nbytes + descriptors[2].block_type.nbytes)
        for t in gl.static_range(3):
            tma.async_copy_global_to_shared(descriptors[t], at, ready, ring[t].index(slot(i, SLOTS)))


@gluon.jit
def _producer(brought, room, config: gl.constexpr, stream: gl.constexpr):
    """Brings the tiles of each item of a stream."""
    CONSUMERS: gl.constexpr = config.team.consumers
    PARTS: gl.constexpr = config.size // TILE
    table, own, descriptors, work, shape = brought
    own_tiles, ring, bars = room[0], room[1], room[2]
    done = 0
    item = _item(0, stream, table, work, shape, config)
    seen = _seen_by(table, item, 0, shape)
    for turn in range(turns_of(work, stream, config)):
        then = _item(turn + 1, stream, table, work, shape, config)
        for c in gl.static_range(CONSUMERS):
            _bring_own(own, own_tiles, bars, item, turn, c, config)
        for repeat in range(shape.repeats):
            now = seen
            seen = _next_list(table, item, then, repeat, shape)
            head = item.key_head * shape.repeats + repeat
            _bring_queries(descriptors, ring, bars, table, now, item.batch, head, done, config)
            done += now.count * PARTS
        item = then


@gluon.jit
def _next_list(table, item, then, repeat, shape):
    """The list after that of a head: the next head's, or the first one of the item that comes then."""
    last = repeat + 1 == shape.repeats
    batch, number = gl.where(last, then.batch, item.batch), gl.where(last, then.number, item.number)
    head = gl.where(last, then.key_head, item.key_head) * shape.repeats + gl.where(last, 0, repeat + 1)
    return list_of(table, layout_of(table, batch, head) + number)


@gluon.jit
def _add_queries(
    dk, dv, own, pick, here, scale, table, seen, part, ring, bars, start, config: gl.constexpr,
):  # fmt: skip
    """(dK unscaled, dV) plus what the tiles of a list, from `start` of the ring on, give."""
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    dk_operand: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    dv_operand: gl.constexpr = gl.DotOperandLayout(0, dv.type.layout, 2)
    SLOTS: gl.constexpr = config.slots
    PARTS: gl.constexpr = config.size // TILE
    for n in range(0, seen.count * PARTS):
        i = start + n
        hidden = opaque(here)  # else the compiler keeps the many addresses of K and V in registers
        k, v = tile_of(own[0], hidden, own[0].shape[0]), tile_of(own[1], hidden, own[1].shape[0])
        mbarrier.wait(full(bars, i, config), phase(i, SLOTS))
        q, grad_out, aux = tile_of(ring[0], i, SLOTS), tile_of(ring[1], i, SLOTS), tile_of(ring[2], i, SLOTS)
        s = less(k, q, aux, pick[0], scores)
        dp = less(v, grad_out, aux, pick[1], scores)
        s = warpgroup_mma_wait(2, deps=(s,))
        p = shown(gl.exp2(s * scale), table, seen, n, None, part, 0.0, config)
        dv = warpgroup_mma(gl.convert_layout(p.to(q.dtype), dv_operand), grad_out, dv, is_async=True)
        dp = warpgroup_mma_wait(1, deps=(dp,))
        ds = (p * dp).to(q.dtype)
        dk = warpgroup_mma(gl.convert_layout(ds, dk_operand), q, dk, is_async=True)
        dk, dv = warpgroup_mma_wait(0, deps=(dk, dv))
        mbarrier.arrive(empty(bars, i, config), count=1)
    return dk, dv


@gluon.jit
def _inside(x, row, within, batch, keys):
    """x where its row belongs to its sequence, else 0."""
    if within is not None:
        begin, end = ends_of(within, batch, keys)
        rows = gl.expand_dims(row + gl.arange(0, TILE, gl.SliceLayout(1, x.type.layout)), 1)
        x = gl.where((rows >= begin) & (rows < end), x, 0.0)
    return x


@gluon.jit
def _store(target, stage, x, at):
    """A gradient's tile, by way of `stage`."""
    stage.reshape((x.shape[0], x.shape[1])).store(x.to(target.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(target, at, stage)


@gluon.jit
def _consumer(given, room, config: gl.constexpr, c: gl.constexpr, stream: gl.constexpr):
    table, pick, within, scale, totals, work, shape = given
    own, ring, bars, stages = room
    STAGED: gl.constexpr = config.streams == 1
    DEPTH: gl.constexpr = config.own // config.team.consumers
    SIZE: gl.constexpr = config.size
    PARTS: gl.constexpr = SIZE // TILE
    WIDTH: gl.constexpr = own[0].shape[4]
    VALUE_WIDTH: gl.constexpr = own[1].shape[4]
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE_WIDTH, 16])
    done = 0
    item = _item(0, stream, table, work, shape, config)
    seen, number = _seen_by(table, item, 0, shape), item.number
    for turn in range(turns_of(work, stream, config)):
        then_number = _item(turn + 1, stream, table, work, shape, config).number
        here = c * DEPTH + slot(turn, DEPTH)
        dk = gl.zeros((TILE, WIDTH), gl.float32, dk_layout)
        dv = gl.zeros((TILE, VALUE_WIDTH), gl.float32, dv_layout)
        mbarrier.wait(own_full(bars, here, config), phase(turn, DEPTH))
        for repeat in range(shape.repeats):
            now = seen
            # Worked out anew where it is needed: it kept registers from the products else.
            batch, key_head = _matrix(opaque(turn), stream, work, shape, config)[:2]
            then_batch, then_key_head = _matrix(opaque(turn) + 1, stream, work, shape, config)[:2]
            here_now, here_then = Item(batch, key_head, number), Item(then_batch, then_key_head, then_number)
            seen = _next_list(table, here_now, here_then, repeat, shape)
            dk, dv = _add_queries(dk, dv, own, pick, here, scale * LOG2E, table, now, c, ring, bars, done, config)
            done += now.count * PARTS
        batch, key_head = _matrix(opaque(turn), stream, work, shape, config)[:2]
        row = number * SIZE + c * TILE
        at = [batch, key_head, row, 0]
        dv = _inside(dv, row, within, batch, shape.keys)
        dk = _inside(dk * scale, row, within, batch, shape.keys)
        if STAGED:  # dV is on its way when dK is stored; tiles of one width take turns in one buffer
            mbarrier.arrive(own_empty(bars, here, config), count=1)
            tma.store_wait(0)
            _store(totals[1], stages[1].index(c), dv, at)
            tma.store_wait(0)
            _store(totals[0], stages[0].index(c), dk, at)
        else:  # gradients take the places of K and V
            _store(totals[1], stages[1].index(here), dv, at)
            _store(totals[0], stages[0].index(here), dk, at)
            tma.store_wait(0)
            mbarrier.arrive(own_empty(bars, here, config), count=1)
        number = then_number
    settle()


@gluon.jit
def _room(own, totals, descriptors, config: gl.constexpr):
    """(own tiles, ring, barriers, tiles to store from) of one stream."""
    OWN: gl.constexpr = config.own
    SLOTS: gl.constexpr = config.slots
    CONSUMERS: gl.constexpr = config.team.consumers
    STAGED: gl.constexpr = config.streams == 1
    own_tiles = buffers(own[0], OWN), buffers(own[1], OWN)
    stages = own_tiles
    if STAGED:
        dv_stages = buffers(totals[1], CONSUMERS)
        dk_stages = dv_stages
        if totals[0].block_shape[3] != totals[1].block_shape[3]:
            dk_stages = buffers(totals[0], CONSUMERS)
        stages = dk_stages, dv_stages
    ring = buffers(descriptors[0], SLOTS), buffers(descriptors[1], SLOTS), buffers(descriptors[2], SLOTS)
    return own_tiles, ring, barriers_of(config), stages


@gluon.jit(do_not_specialize=[*NUMBERS, *WORK, "key_heads", "key_heads_reciprocal", "repeats"])
def keys_kernel(
    k, v, q, grad_out, aux, dk, dv, starts, counts, blocks, tile, tiles, layout, order, rows, layout_heads, within,
    scale, key_heads, key_heads_reciprocal, repeats, queries, keys,
    items, ranks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
    config: gl.constexpr,
):  # fmt: skip
    """Gradients of keys and values."""
    STREAMS: gl.constexpr = config.streams
    table = Table(starts, counts, blocks, tile, tiles, layout, order, rows, layout_heads)
    work = work_given(
        items, ranks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal
    )  # fmt: skip
    shape = Shape(Divisor(key_heads, key_heads_reciprocal), repeats, queries, keys)
    pick = (picking(0), picking(3))
    fence_async_shared()
    rooms = (_room((k, v), (dk, dv), (q, grad_out, aux), config),)
    for _ in gl.static_range(STREAMS - 1):
        rooms += (_room((k, v), (dk, dv), (q, grad_out, aux), config),)
    given = (table, pick, within, scale, (dk, dv), work, shape)
    in_streams(_consumer, given, _producer, (table, (k, v), (q, grad_out, aux), work, shape), rooms, config)
