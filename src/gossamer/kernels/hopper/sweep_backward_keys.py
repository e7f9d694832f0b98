"""The gradients of keys and values over runs of queries: a team with 64 keys each shares every tile brought in.

A work item is a team's key tiles and all, or a part, of the queries that see them, in every head of the key's group;
dK and dV are finished in registers. Of few keys, all of the team own the same tile and take the queries' tiles in turn,
each with a part of the sums. Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T, so that P^T and
dS^T are operands in registers as well. Log-sum-exp and delta vary along their columns: each query's auxiliary row
(see `sweep_backward_queries`) holds both, and one further step of the matrix instruction subtracts them.

A second run of queries may follow, which see every key (see `whole_rows`), those of all heads of a key head in one: its
tiles need no mask, for what is read past its end is zero in Q, in dO and in the auxiliary rows, and adds nothing.
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

from .division import Divisor, quotient
from .ring import AUX, LOG2E, TILE, first_rows, opaque, phase, settle, slot, tile_of, times_transposed
from .sweep import (
    NUMBERS,
    Edges,
    Place,
    as_a_team,
    barriers_of,
    buffers,
    empty,
    full,
    own_empty,
    own_full,
    own_turns,
    pass_over,
    reach_of,
    seen,
    span_of,
    turns_of,
    unit_and_block,
    work_given,
)


class Shape(NamedTuple):
    """Numbers of the problem that places follow from."""

    key_heads: Divisor
    repeats: gl.tensor
    """Query heads of a key head."""
    keys: gl.tensor
    parts: Divisor
    """Parts that the queries are cut into, each an item of its own."""
    matrices: gl.tensor
    """Key heads of all batches."""
    whole: gl.tensor
    """Queries of the second run of a key head."""


class Totals(NamedTuple):
    """Where a gradient goes: a descriptor and buffers, or a dense float32 tensor [parts, B, G, C, width]."""

    target: gl.tensor
    stages: gl.tensor
    width: gl.tensor


@gluon.jit
def _place(turn, work, shape, config: gl.constexpr):
    """(the first tile of an item, its part of the queries); early keys come first, which are seen the most."""
    ROWS: gl.constexpr = config.rows
    unit, block = unit_and_block(turn, work, config)
    matrix = quotient(unit, shape.parts)
    part = unit - matrix * shape.parts.value
    batch = quotient(matrix, shape.key_heads)
    key_head = matrix - batch * shape.key_heads.value
    return Place(batch, key_head * shape.repeats, key_head, block * ROWS), part


@gluon.jit
def _part_of(edges, place, part, shape, config: gl.constexpr):
    """(a query, tiles first ... last - 1 counted from it): an item's share of the queries that see its keys."""
    ROWS: gl.constexpr = config.rows
    low, high = span_of(edges, place.batch, place.row, ROWS, shape.keys)
    count = gl.cdiv(high - low, TILE)
    return low, quotient(count * part, shape.parts), quotient(count * (part + 1), shape.parts)


@gluon.jit
def _own_row(item, consumer: gl.constexpr, config: gl.constexpr):
    """The first key of an item that a consumer owns."""
    IN_TURN: gl.constexpr = config.in_turn
    return item.row if IN_TURN else item.row + consumer * TILE


@gluon.jit
def _bring_own(own, bars, place, turn, consumer: gl.constexpr, config: gl.constexpr):
    """One consumer's tiles of K and V."""
    k, v, k_tiles, v_tiles = own
    here = consumer * config.depth + slot(turn, config.depth)
    ready = own_full(bars, here, config)
    mbarrier.wait(own_empty(bars, here, config), phase(turn, config.depth) ^ 1)
    mbarrier.expect(ready, k.block_type.nbytes + v.block_type.nbytes)
    at = [place.batch, place.key_head, _own_row(place, consumer, config), 0]
    tma.async_copy_global_to_shared(k, at, ready, k_tiles.index(here))
    tma.async_copy_global_to_shared(v, at, ready, v_tiles.index(here))


@gluon.jit
def _bring_queries(descriptors, ring, bars, at, i, config: gl.constexpr):
    """A tile of Q, dO and auxiliary rows, as tile i of the ring."""
    nbytes: gl.constexpr = descriptors[0].block_type.nbytes + descriptors[1].block_type.nbytes
    ready = full(bars, i, config)
    mbarrier.wait(empty(bars, i, config), phase(i, config.slots) ^ 1)
    mbarrier.expect(ready, nbytes + descriptors[2].block_type.nbytes)
    for t in gl.static_range(3):
        tma.async_copy_global_to_shared(descriptors[t], at, ready, ring[t].index(slot(i, config.slots)))


@gluon.jit
def _producer(brought, config: gl.constexpr):
    CONSUMERS: gl.constexpr = config.team.consumers
    edges, own, descriptors, whole, work, shape, ring, bars = brought
    SEGMENTS: gl.constexpr = config.segments
    done = 0
    for turn in range(turns_of(work)):
        place, part = _place(turn, work, shape, config)
        low, first, last = _part_of(edges, place, part, shape, config)
        for c in gl.static_range(CONSUMERS):
            _bring_own(own, bars, place, turn, c, config)
        for head in range(place.head, place.head + shape.repeats):
            for tile in range(first, last):
                _bring_queries(descriptors, ring, bars, [place.batch, head, low + tile * TILE, 0], done, config)
                done += 1
        if SEGMENTS == 2:
            for tile in range(0, gl.cdiv(shape.whole, TILE)):
                _bring_queries(whole, ring, bars, [place.batch, place.key_head, tile * TILE, 0], done, config)
                done += 1


@gluon.jit
def picking(first: gl.constexpr):
    """Minus one in the three columns from `first` on: times the auxiliary rows, it subtracts what they hold there."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [4, 1], [1, 0])
    swizzled: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=32, element_bitwidth=16, rank=2)
    column = gl.expand_dims(gl.arange(0, AUX, gl.SliceLayout(0, layout)), 0)
    column += gl.zeros((TILE, AUX), gl.int32, layout)
    values = gl.where((column >= first) & (column < first + 3), -1.0, 0.0).to(gl.bfloat16)
    return gl.allocate_shared_memory(gl.bfloat16, (TILE, AUX), swizzled, values)


@gluon.jit
def less(a, b, aux, picks, layout: gl.constexpr):
    """a @ b^T less what `picks` picks of the auxiliary rows, begun: two groups of matrix instructions."""
    s = times_transposed(picks, aux, layout)
    return warpgroup_mma(a, b.permute((1, 0)), s, is_async=True)


@gluon.jit
def _add_queries(
    dk, dv, own, picks, here, scale, reach, ring, bars, start, stop, row, consumer: gl.constexpr, config: gl.constexpr,
):  # fmt: skip
    """(dK unscaled, dV) plus what tiles start ... stop - 1 of the ring give, or those of them whose turn it is.

    The first begins at query `row`. Where `reach` is None, all of them are seen.
    """
    STEP: gl.constexpr = config.step
    ROWS: gl.constexpr = config.second_rows if reach is None else TILE
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    dk_operand: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    dv_operand: gl.constexpr = gl.DotOperandLayout(0, dv.type.layout, 2)
    skipped, turns = own_turns(start, stop, consumer, config)
    for turn in range(0, turns):
        n = skipped + turn * STEP
        i = start + n
        hidden = opaque(here)  # else the compiler keeps the many addresses of K and V in registers
        k, v = tile_of(own[0], hidden, own[0].shape[0]), tile_of(own[1], hidden, own[1].shape[0])
        mbarrier.wait(full(bars, i, config), phase(i, config.slots))
        q, grad_out, aux = (
            first_rows(tile_of(ring[0], i, config.slots), ROWS),
            first_rows(tile_of(ring[1], i, config.slots), ROWS),
            first_rows(tile_of(ring[2], i, config.slots), ROWS),
        )
        s = less(k, q, aux, picks[0], scores)
        dp = less(v, grad_out, aux, picks[1], scores)
        s = warpgroup_mma_wait(2, deps=(s,))
        p = gl.exp2(s * scale)
        if reach is not None:
            p = seen(p, reach, row + n * TILE, 0.0)
        dv = warpgroup_mma(gl.convert_layout(p.to(q.dtype), dv_operand), grad_out, dv, is_async=True)
        dp = warpgroup_mma_wait(1, deps=(dp,))
        ds = (p * dp).to(q.dtype)
        dk = warpgroup_mma(gl.convert_layout(ds, dk_operand), q, dk, is_async=True)
        dk, dv = warpgroup_mma_wait(0, deps=(dk, dv))
        mbarrier.arrive(empty(bars, i, config), count=1)
    return dk, dv


@gluon.jit
def _store(totals, x, place, part, shape, consumer: gl.constexpr):
    """A gradient's tile, in the tensor's type or as one of the parts that are to be added.

    What is `opaque` here is known before the first product, and kept registers from them else.
    """
    if totals.width is None:
        tma.store_wait(0)
        stage = totals.stages.index(opaque(gl.to_tensor(consumer)))
        stage.reshape((x.shape[0], x.shape[1])).store(x.to(totals.target.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(totals.target, [place.batch, place.key_head, place.row, 0], stage)
    else:
        rows = gl.expand_dims(place.row + gl.arange(0, TILE, gl.SliceLayout(1, x.type.layout)), 1)
        columns = gl.arange(0, x.shape[1], gl.SliceLayout(0, x.type.layout))
        lane, constant = gl.expand_dims(columns & 6, 0), gl.expand_dims(columns & ~6, 0)
        width = opaque(totals.width)
        matrix = part * shape.matrices + place.batch * shape.key_heads.value + place.key_head
        first = totals.target + ((matrix.to(gl.int64) * shape.keys + rows) * width + lane)
        gl.store(first + constant, x, mask=(rows < shape.keys) & (constant < width - lane))


@gluon.jit
def _consumer(given, config: gl.constexpr, consumer: gl.constexpr):
    edges, own, picks, scale, totals, work, shape, ring, bars = given
    WIDTH: gl.constexpr = own[0].shape[4]
    VALUE_WIDTH: gl.constexpr = own[1].shape[4]
    SEGMENTS: gl.constexpr = config.segments
    IN_TURN: gl.constexpr = config.in_turn
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE_WIDTH, 16])
    done = 0
    for turn in range(turns_of(work)):
        item, part = _place(turn, work, shape, config)
        low, first, last = _part_of(edges, item, part, shape, config)
        place = Place(item.batch, item.head, item.key_head, _own_row(item, consumer, config))
        reach = reach_of(edges, place, shape.keys, scores)
        begin = gl.minimum(gl.maximum((reach.first_begin - low) // TILE, first), last)
        end = gl.where(place.row < shape.keys, gl.cdiv(reach.last_end - low, TILE), 0)
        end = gl.maximum(gl.minimum(end, last), begin)
        here = consumer * config.depth + slot(turn, config.depth)
        dk = gl.zeros((TILE, WIDTH), gl.float32, dk_layout)
        dv = gl.zeros((TILE, VALUE_WIDTH), gl.float32, dv_layout)
        mbarrier.wait(own_full(bars, here, config), phase(turn, config.depth))
        for _ in range(shape.repeats):
            if not IN_TURN:
                pass_over(bars, done, done + begin - first, config)
            dk, dv = _add_queries(
                dk, dv, own, picks, here, scale * LOG2E, reach, ring, bars,
                done + begin - first, done + end - first, low + begin * TILE, consumer, config,
            )  # fmt: skip
            if not IN_TURN:
                pass_over(bars, done + end - first, done + last - first, config)
            done += last - first
        if SEGMENTS == 2:
            here = consumer * config.depth + slot(opaque(turn), config.depth)  # anew, and the count: as below
            whole = gl.cdiv(opaque(shape.whole), TILE)
            dk, dv = _add_queries(
                dk, dv, own, picks, here, scale * LOG2E, None, ring, bars, done, done + whole, 0, consumer, config
            )  # fmt: skip
            done += whole
        mbarrier.arrive(own_empty(bars, here, config), count=1)
        item, part = _place(opaque(turn), work, shape, config)  # anew: it kept registers from the products else
        place = Place(item.batch, item.head, item.key_head, _own_row(item, consumer, config))
        if IN_TURN:
            part = part * config.step + consumer
        _store(totals[1], dv, place, part, shape, consumer)
        _store(totals[0], dk * scale, place, part, shape, consumer)
    settle()


@gluon.jit(
    do_not_specialize=[
        *NUMBERS,
        *("key_heads", "key_heads_reciprocal", "keys", "parts", "parts_reciprocal", "matrices", "whole"),
    ]
)
def keys_kernel(
    k, v, q, grad_out, aux, q2, grad_out2, aux2, dk, dv, width, value_width,
    begin, end, shift, breadth, columns, apart,
    scale, key_heads, key_heads_reciprocal, repeats, keys, parts, parts_reciprocal, matrices, whole,
    items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
    config: gl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, in their own type or, where widths are given, as float32 parts of a sum."""
    CONSUMERS: gl.constexpr = config.team.consumers
    TILES: gl.constexpr = CONSUMERS * config.depth
    k_tiles, v_tiles = buffers(k, TILES), buffers(v, TILES)
    picks = (picking(0), picking(3))
    fence_async_shared()
    if width is None:
        dv_stages = buffers(dv, CONSUMERS)
        dk_stages = dv_stages  # dV is on its way when dK is stored; tiles of one width take turns in one buffer
        if dk.block_shape[3] != dv.block_shape[3]:
            dk_stages = buffers(dk, CONSUMERS)
        totals = (Totals(dk, dk_stages, width), Totals(dv, dv_stages, value_width))
    else:
        totals = (Totals(dk, None, width), Totals(dv, None, value_width))
    SLOTS: gl.constexpr = config.slots
    ring = (buffers(q, SLOTS), buffers(grad_out, SLOTS), buffers(aux, SLOTS))
    bars = barriers_of(config)
    work = work_given(
        items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal
    )  # fmt: skip
    key_heads, parts = Divisor(key_heads, key_heads_reciprocal), Divisor(parts, parts_reciprocal)
    shape = Shape(key_heads, repeats, keys, parts, matrices, whole)
    edges = Edges(begin, end, shift, breadth, columns, apart)
    given = (edges, (k_tiles, v_tiles), picks, scale, totals, work, shape, ring, bars)
    own, runs = (k, v, k_tiles, v_tiles), ((q, grad_out, aux), (q2, grad_out2, aux2))
    brought = (edges, own, runs[0], runs[1], work, shape, ring, bars)
    as_a_team(_consumer, given, _producer, brought, config)
