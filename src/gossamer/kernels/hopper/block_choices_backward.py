"""The backward over chosen blocks on Hopper: each block meets the queries that chose it, in the order of its list.

A program owns a part of a block's list. The rows of its queries come tile by tile into shared memory, gathered while
the tile before is worked on; dK and dV stay in registers, and dQ leaves as one piece for each query, in the order in
which registers hold it, while the next tile's scores are multiplied. Two programs share a multiprocessor, and each
works while the other waits.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .ring import AUX, LOG2E, TILE, in_turn, opaque
from .sweep_backward_keys import less, picking


@gluon.constexpr_function
def _wide_rows(width):
    """Rows of a tensor, 16 bytes a thread, a row by neighbouring threads."""
    threads = min(width // 8, 32)
    return gl.BlockedLayout([1, 8], [32 // threads, threads], [4, 1], [1, 0])


@gluon.constexpr_function
def _fixed(width, together):
    """Bits of a row's number that tell rows of a thread apart; none where these are all of one entry."""
    return 0 if together == TILE.value else TILE.value - max(1, 128 // min(width // 8, 32))


@gluon.constexpr_function
def _swizzled(width):
    """Tiles [rows, width] as matrix instructions read them."""
    return gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * width), element_bitwidth=16, rank=2)


@gluon.jit
def _loaded(x, batch, head, row, rows, WIDTH: gl.constexpr):
    """A tile of 64 rows of a head in shared memory; zeros beyond the last."""
    layout: gl.constexpr = _wide_rows(WIDTH)
    place = row + gl.arange(0, TILE, gl.SliceLayout(1, layout))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    first = x.pointer + (batch.to(gl.int64) * x.batch + head.to(gl.int64) * x.head) * x.unit
    cells = first + gl.expand_dims(place.to(gl.int64) * (x.row * x.unit), 1) + gl.expand_dims(column, 0)
    tile = gl.load(cells, mask=gl.expand_dims(place < rows, 1), other=0.0)
    return gl.allocate_shared_memory(tile.dtype, (TILE, WIDTH), _swizzled(WIDTH), tile)


@gluon.constexpr_function
def _bits(count):
    """Of numbers below a power of two."""
    return count.bit_length() - 1


@gluon.jit
def _rows(turn, TOGETHER: gl.constexpr, FIXED: gl.constexpr, layout: gl.constexpr):
    """(entry from a tile's first on, repeat) of each row of the tile. `FIXED` are bits of a row's number that are
    constants in every register; the others are made anew in each turn, or else all rows' places stay in registers."""
    BITS: gl.constexpr = _bits(TOGETHER)
    row = gl.arange(0, TILE, layout)
    fixed, own = row & FIXED, in_turn(row & (TILE - 1 - FIXED), turn)
    return (fixed >> BITS) + (own >> BITS), (fixed & (TOGETHER - 1)) + (own & (TOGETHER - 1))


@gluon.jit
def _entries(entries, start, count, TOGETHER: gl.constexpr, WIDTH: gl.constexpr):
    """The entries of a tile's rows, as the rows of a tensor of this width are gathered; rows beyond the last entry do
    as it does."""
    place = _rows(start, TOGETHER, _fixed(WIDTH, TOGETHER), gl.SliceLayout(1, _wide_rows(WIDTH)))[0]
    return gl.load(entries + gl.minimum(start + place, count - 1))


@gluon.jit
def _query(entry, SLOTS: gl.constexpr):
    """The query of an entry, which is not negative."""
    return (entry.to(gl.uint32) // SLOTS).to(gl.int32)


@gluon.jit
def _product(x, y):
    """x * y in 64 bits, of numbers that are not negative: one instruction. A stride that is 1 is a constant."""
    return (x.to(gl.uint32).to(gl.uint64) * gl.to_tensor(y).to(gl.uint32).to(gl.uint64)).to(gl.int64)


@gluon.jit
def _gather(x, batch, head, ring, turn, entry, SLOTS: gl.constexpr, TOGETHER: gl.constexpr):
    """Rows of entries' queries, in heads from `head` on, on their way into shared memory."""
    WIDTH: gl.constexpr = ring.shape[2]
    layout: gl.constexpr = _wide_rows(WIDTH)
    repeat = _rows(turn, TOGETHER, _fixed(WIDTH, TOGETHER), gl.SliceLayout(1, layout))[1]
    place = _product(repeat, x.head) + _product(_query(entry, SLOTS), x.row)
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    first = x.pointer + (_product(batch, x.batch) + _product(head, x.head)) * x.unit
    cells = first + gl.expand_dims(place * x.unit, 1) + gl.expand_dims(column, 0)
    async_copy.async_copy_global_to_shared(ring.index(turn & 1), cells)


@gluon.jit
def _gather_auxiliary(aux, first, ring, turn, entry, queries, SLOTS: gl.constexpr, TOGETHER: gl.constexpr):
    """Auxiliary rows of entries' queries, in heads from the `first` of all on, on their way into shared memory."""
    layout: gl.constexpr = _wide_rows(AUX)
    repeat = _rows(turn, TOGETHER, _fixed(AUX, TOGETHER), gl.SliceLayout(1, layout))[1]
    row = _product(first + repeat, queries) + _query(entry, SLOTS)
    column = gl.arange(0, AUX, gl.SliceLayout(0, layout))
    cells = aux + gl.expand_dims(row * AUX, 1) + gl.expand_dims(column, 0)
    async_copy.async_copy_global_to_shared(ring.index(turn & 1), cells)


@gluon.jit
def _bring(given, rings, turn, entry, SLOTS: gl.constexpr, TOGETHER: gl.constexpr):
    """The rows of entries' queries, their gradients and auxiliary rows on their way into shared memory."""
    q, grad_out, aux, batch, head, heads, queries = given
    VALUE_WIDTH: gl.constexpr = rings[1].shape[2]
    batch, head = in_turn(batch, turn), in_turn(head, turn)  # else addresses that follow from them stay in registers
    _gather(q, batch, head, rings[0], turn, entry[0], SLOTS, TOGETHER)
    _gather(grad_out, batch, head, rings[1], turn, _as_rows(entry[0], VALUE_WIDTH), SLOTS, TOGETHER)
    _gather_auxiliary(aux, batch * heads + head, rings[2], turn, entry[1], queries, SLOTS, TOGETHER)
    async_copy.commit_group()


@gluon.jit
def _shown(s, entries, start, count, block, axes, SIZE: gl.constexpr, SLOTS: gl.constexpr, TOGETHER: gl.constexpr):
    """s [keys, rows] where the row is one of an entry, whose query sees the key; else minus infinity."""
    place = start + gl.arange(0, TILE, gl.SliceLayout(0, s.type.layout)) // TOGETHER
    last = gl.full([TILE], axes.keys - 1, gl.int32, gl.SliceLayout(0, s.type.layout))
    if axes.causal:
        query = _query(gl.load(entries + gl.minimum(place, count - 1)), SLOTS)
        last = gl.minimum(last, query + axes.offset)
    last = gl.where(place < count, last, -1)
    key = block * SIZE + gl.arange(0, TILE, gl.SliceLayout(1, s.type.layout))
    return gl.where(gl.expand_dims(key, 1) <= gl.expand_dims(last, 0), s, float("-inf"))


IN_PIECES = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], [0, 32]],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 64],
    )
)
"""Who holds what of a product [64, 64] whose columns are turned so that each thread's lie in pieces of eight."""


@gluon.jit
def _turned(x):
    """x [64, 64], columns so turned that a thread stores what it holds of a row in pieces of 16 bytes."""
    parts = gl.permute(gl.reshape(x, (TILE, 2, 4, 4, 2)), (0, 1, 3, 2, 4))
    return gl.convert_layout(gl.reshape(parts, (TILE, TILE)), IN_PIECES, assert_trivial=True)


@gluon.jit
def _times_keys(ds_tile, k_tile, half: gl.constexpr, layout: gl.constexpr):
    """dS of [keys, rows] turned about, times 64 columns of the keys, begun."""
    zeros = gl.zeros((TILE, TILE), gl.float32, layout)
    keys = k_tile.slice(half * TILE, TILE, dim=1)
    return warpgroup_mma(ds_tile.permute((1, 0)), keys, zeros, use_acc=False, is_async=True)


@gluon.jit
def _store_queries(
    to, dq, half: gl.constexpr, here, entries, start, count,
    CHOSEN: gl.constexpr, REPEATS: gl.constexpr, WIDTH: gl.constexpr,
):  # fmt: skip
    """64 columns of what a block gives to the queries of a tile's entries; `to` are all pieces, and how many queries
    there are."""
    SLOTS: gl.constexpr = triton.next_power_of_2(CHOSEN)
    piece_dq, queries = to
    x = _turned(dq).to(piece_dq.dtype.element_ty)
    place, repeat = _rows(start, REPEATS, 8, gl.SliceLayout(1, x.type.layout))
    place += start
    there = place < count
    entry = gl.load(entries + place, mask=there, other=0)
    rank = in_turn(here, start) * CHOSEN + (entry & (SLOTS - 1))  # else 64 bits of the first piece stay in registers
    at = (_product(rank, queries) + _query(entry, SLOTS)) * (REPEATS * WIDTH) + repeat * WIDTH
    column = half * TILE + gl.arange(0, TILE, gl.SliceLayout(0, x.type.layout))
    cells = piece_dq + gl.expand_dims(at, 1) + gl.expand_dims(column, 0)
    gl.store(cells, x, mask=gl.expand_dims(there, 1), cache_modifier=".cs")


@gluon.jit
def _store_keys(x, tile, batch, head, row, rows):
    """A gradient's tile of 64 rows of a head, as far as these exist."""
    layout: gl.constexpr = tile.type.layout
    place = row + gl.arange(0, TILE, gl.SliceLayout(1, layout))
    column = gl.arange(0, tile.shape[1], gl.SliceLayout(0, layout))
    first = x.pointer + (batch.to(gl.int64) * x.batch + head.to(gl.int64) * x.head) * x.unit
    cells = first + gl.expand_dims(place.to(gl.int64) * (x.row * x.unit), 1) + gl.expand_dims(column, 0)
    gl.store(cells, tile.to(x.pointer.dtype.element_ty), mask=gl.expand_dims(place < rows, 1))


@gluon.jit
def _store_part(parts, tile, item):
    """An item's part of a gradient, in float32."""
    WIDTH: gl.constexpr = tile.shape[1]
    row = item.to(gl.int64) * TILE + gl.arange(0, TILE, gl.SliceLayout(1, tile.type.layout))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, tile.type.layout))
    gl.store(parts + gl.expand_dims(row * WIDTH, 1) + gl.expand_dims(column, 0), tile)


@gluon.jit
def _place(program, rare, heads, first_lane):
    """(lane from the first on, batch, key head, lane of the lists, block) of a program."""
    here = program // rare.most
    number = first_lane + here
    batch, key_head = number // heads.key_heads, number % heads.key_heads
    lane = number // heads.alike
    return here, batch, key_head, lane, gl.load(rare.items + lane * rare.most + program % rare.most)


@gluon.jit
def backward_pieces(
    q, k, v, grad_out, aux, piece_dq, dk, dv, part_dk, part_dv, rare, heads, axes, first_lane, scale,
    CHOSEN: gl.constexpr, PART: gl.constexpr, REPEATS: gl.constexpr, WIDTH: gl.constexpr, VALUE_WIDTH: gl.constexpr,
):  # fmt: skip
    """What the block of an item gives to each entry's query, and what the entries give to its keys and values."""
    SIZE: gl.constexpr = TILE
    SLOTS: gl.constexpr = triton.next_power_of_2(CHOSEN)
    ENTRIES: gl.constexpr = TILE // REPEATS
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE_WIDTH, 16])
    dk_operand: gl.constexpr = gl.DotOperandLayout(0, dk_layout, 2)
    dv_operand: gl.constexpr = gl.DotOperandLayout(0, dv_layout, 2)
    dtype: gl.constexpr = q.pointer.dtype.element_ty
    here, batch, key_head, lane, block = _place(gl.program_id(0), rare, heads, first_lane)
    if block < axes.blocks:
        at = lane * axes.blocks + block
        done = gl.load(rare.parts + lane * rare.most + gl.program_id(0) % rare.most) * PART
        left = gl.load(rare.totals + at) - done
        count = gl.where(left < PART + PART // 2, left, PART)
        entries = rare.entries + lane.to(gl.int64) * axes.queries * CHOSEN + gl.load(rare.starts + at) + done
        q_ring = gl.allocate_shared_memory(dtype, (2, TILE, WIDTH), _swizzled(WIDTH))
        grad_ring = gl.allocate_shared_memory(dtype, (2, TILE, VALUE_WIDTH), _swizzled(VALUE_WIDTH))
        aux_ring = gl.allocate_shared_memory(gl.bfloat16, (2, TILE, AUX), _swizzled(AUX))
        ds_tile = gl.allocate_shared_memory(dtype, (TILE, TILE), _swizzled(TILE))
        to = piece_dq, axes.queries
        bring = q, grad_out, aux, batch, key_head * REPEATS, heads.count, axes.queries
        rings = q_ring, grad_ring, aux_ring
        given = _entries(entries, 0, count, REPEATS, WIDTH), _entries(entries, 0, count, REPEATS, AUX)
        _bring(bring, rings, 0, given, SLOTS, REPEATS)
        end = axes.keys
        if axes.causal:  # whatever lies in keys that nobody sees would be multiplied with zeros
            end = gl.minimum(end, gl.load(rare.latest + at) + axes.offset + 1)
        k_tile = _loaded(k, batch, key_head, block * SIZE, end, WIDTH)
        v_tile = _loaded(v, batch, key_head, block * SIZE, end, VALUE_WIDTH)
        picks = picking(0), picking(3)
        edge = block * SIZE + SIZE > axes.keys
        masked = gl.where(edge, count, gl.where(axes.causal, SIZE - done, 0))
        dk_tile = gl.zeros((TILE, WIDTH), gl.float32, dk_layout)
        dv_tile = gl.zeros((TILE, VALUE_WIDTH), gl.float32, dv_layout)
        given = _entries(entries, ENTRIES, count, REPEATS, WIDTH), _entries(entries, ENTRIES, count, REPEATS, AUX)
        async_copy.wait_group(0)
        fence_async_shared()
        gl.thread_barrier()
        s = less(k_tile, q_ring.index(0), aux_ring.index(0), picks[0], scores)
        _bring(bring, rings, 1, given, SLOTS, REPEATS)
        s = warpgroup_mma_wait(0, deps=(s,))
        for turn in range(0, (count + ENTRIES - 1) // ENTRIES):
            start = turn * ENTRIES
            q_tile, grad_tile, aux_tile = q_ring.index(turn & 1), grad_ring.index(turn & 1), aux_ring.index(turn & 1)
            if (start < masked) | (start + ENTRIES > count):
                s = _shown(s, entries, start, count, block, axes, SIZE, SLOTS, REPEATS)
            dp = less(v_tile, grad_tile, aux_tile, picks[1], scores)
            p = gl.exp2(s * (scale * LOG2E))
            dv_tile = warpgroup_mma(gl.convert_layout(p.to(dtype), dv_operand), grad_tile, dv_tile, is_async=True)
            dp = warpgroup_mma_wait(1, deps=(dp,))
            ds = (p * dp).to(dtype)
            ds_tile.store(ds)
            dk_tile = warpgroup_mma(gl.convert_layout(ds, dk_operand), q_tile, dk_tile, is_async=True)
            fence_async_shared()
            gl.thread_barrier()
            dq = _times_keys(ds_tile, k_tile, 0, scores)
            dk_tile, dv_tile, dq = warpgroup_mma_wait(0, deps=(dk_tile, dv_tile, dq))
            for half in gl.static_range(1, WIDTH // TILE):
                half_dq = _times_keys(ds_tile, k_tile, half, scores)
                _store_queries(to, dq, half - 1, here, entries, start, count, CHOSEN, REPEATS, WIDTH)
                dq = half_dq
            async_copy.wait_group(0)
            fence_async_shared()
            gl.thread_barrier()
            s = less(k_tile, q_ring.index((turn + 1) & 1), aux_ring.index((turn + 1) & 1), picks[0], scores)
            # Of what lies beyond the last entry nobody reads what comes of it.
            then = start + 2 * ENTRIES
            given = _entries(entries, then, count, REPEATS, WIDTH), _entries(entries, then, count, REPEATS, AUX)
            dq = warpgroup_mma_wait(2, deps=(dq,))
            _store_queries(to, dq, WIDTH // TILE - 1, here, entries, start, count, CHOSEN, REPEATS, WIDTH)
            gl.thread_barrier()  # all have read what is overwritten from here on
            _bring(bring, rings, turn, given, SLOTS, REPEATS)
            s = warpgroup_mma_wait(0, deps=(s,))
        async_copy.wait_group(0)
        dk_tile *= scale
        # Worked out anew: it kept registers from the products else.
        program = opaque(gl.program_id(0))
        here, batch, key_head, lane, block = _place(program, rare, heads, first_lane)
        if gl.load(rare.totals + lane * axes.blocks + block) < PART + PART // 2:
            _store_keys(dk, dk_tile, batch, key_head, block * SIZE, axes.keys)
            _store_keys(dv, dv_tile, batch, key_head, block * SIZE, axes.keys)
        else:
            part = gl.load(rare.parts + lane * rare.most + program % rare.most)
            item = here * rare.most + gl.load(rare.first_items + lane * axes.blocks + block) + part
            _store_part(part_dk, dk_tile, item)
            _store_part(part_dv, dv_tile, item)


@gluon.jit
def _as_rows(entry, WIDTH: gl.constexpr):
    """Entries as the rows of a tensor of another width are gathered."""
    return gl.convert_layout(entry, gl.SliceLayout(1, _wide_rows(WIDTH)))
