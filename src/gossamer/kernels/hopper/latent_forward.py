"""Forward over chosen latents, which are keys and values at once: 64 rows of queries a program, gathered tiles of 64.

Two consumer warpgroups share each tile. They take turns at the scores: the one whose turn it is makes the weights and
hands them on through shared memory. Each adds up its own half of the values, and so the rows' outputs fit into
registers. Where a tile of weights is made, the other tile is on its way.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .latent_ring import (
    HALF,
    REGISTERS,
    ROTARY,
    SCORES,
    SWIZZLED,
    VECTOR,
    WARPS,
    WIDE,
    Chunk,
    Latents,
    Lists,
    Packing,
    as_matrix,
    gather,
    gathered,
    heads_tiles,
    latents_in_memory,
    listed,
    members_of,
    own_rows,
    place_of,
    products,
)
from .launch import Launch, Operands, launch
from .ring import LN2, LOG2E, LOWEST, TILE, barriers, opaque, row_max, settle, thread_sum, turns_of
from .sweep import buffers


@gluon.jit
def tiles_of(count):
    """Tiles of a list: an even number, so that both consumers have as many, and some even where nothing is seen."""
    return gl.cdiv(gl.maximum(count, 1), 2 * TILE) * 2


@gluon.jit
def _producer(given, room, config: gl.constexpr):
    q, q_rotary, latents, lists, chunk = given
    q_halves, q_last, q_full, q_empty = room[0]
    halves, rotary, full, empty = room[1]
    QUERIES: gl.constexpr = config.queries
    done = 0
    for turn in range(turns_of(chunk)):
        at = place_of(gl.program_id(0) + turn * gl.num_programs(0), lists, chunk, config)
        entries, exists = listed(lists, at.batch, at.group, 0, at.count)
        for tile in range(tiles_of(at.count)):
            i = (done + tile) & 1
            next_entries, next_exists = listed(lists, at.batch, at.group, (tile + 1) * TILE, at.count)
            mbarrier.wait(empty.index(i), (((done + tile) >> 1) & 1) ^ 1)
            gather(latents, at.batch, entries, exists, halves, rotary, i)
            async_copy.mbarrier_arrive(full.index(i), increment_count=False)
            entries, exists = next_entries, next_exists
            if tile == 1:
                mbarrier.wait(q_empty.index(0), (turn & 1) ^ 1)
                ready = q_full.index(0)
                mbarrier.expect(ready, 2 * q.block_type.nbytes + q_rotary.block_type.nbytes)
                row = at.group * QUERIES
                tma.async_copy_global_to_shared(q, [at.batch, row, at.head, 0], ready, q_halves.index(0))
                tma.async_copy_global_to_shared(q, [at.batch, row, at.head, HALF], ready, q_halves.index(1))
                tma.async_copy_global_to_shared(q_rotary, [at.batch, row, at.head, 2 * HALF], ready, q_last.index(0))
        done += tiles_of(at.count)
    settle()


@gluon.jit
def _seen(s, lists, at, place, config: gl.constexpr):
    """Scores, minus infinity where a row does not see the latent."""
    columns = place + gl.arange(0, TILE, gl.SliceLayout(0, SCORES))
    if lists.members is None:
        return gl.where(gl.expand_dims(columns < at.count, 0), s, float("-inf"))
    else:
        bits = members_of(lists, at, columns)
        query = gl.arange(0, TILE, gl.SliceLayout(1, SCORES)) // config.heads
        return gl.where((gl.expand_dims(bits, 0) >> gl.expand_dims(query, 1)) & 1 != 0, s, float("-inf"))


@gluon.jit
def _scaled(x, factor):
    """Rows of x times their factor."""
    return x * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, x.type.layout)), 1)


@gluon.jit
def _own(state, q, tiles, shared, lists, at, place, parity, scale, c: gl.constexpr, config: gl.constexpr):
    """A tile whose weights this consumer makes."""
    acc, highest, sums = state
    halves, rotary, full, empty = tiles
    here = opaque(gl.to_tensor(c))
    weights, maxima, made = shared
    gathered(full.index(c), parity)
    s = products(own_rows(q[0], q[1]), (halves.index(2 * here), halves.index(2 * here + 1), rotary.index(here)))
    s = warpgroup_mma_wait(0, deps=(s,))
    s = _seen(s, lists, at, place, config)
    new = gl.maximum(highest, row_max(s) * scale)
    p = gl.exp2(s * scale - gl.expand_dims(new, 1))
    factor = gl.exp2(highest - new)
    rounded = p.to(weights.dtype)
    weights.store(rounded)
    maxima.store(new)
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.arrive(made.index(c), count=1)
    sums = _scaled(sums, factor) + thread_sum(p)
    acc = _scaled(acc, factor)
    operand: gl.constexpr = gl.DotOperandLayout(0, WIDE, 2)
    acc = warpgroup_mma(gl.convert_layout(rounded, operand), halves.index(3 * opaque(here)), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty.index(c), count=1)
    return acc, new, sums


@gluon.jit
def _others(state, tiles, shared, parity, c: gl.constexpr):
    """A tile whose weights the other consumer has made."""
    acc, highest, sums = state
    halves, _, full, empty = tiles
    weights, maxima, made = shared
    OTHER: gl.constexpr = 1 - c
    gathered(full.index(OTHER), parity)
    gathered(made.index(OTHER), parity)
    new = maxima.load(gl.SliceLayout(1, SCORES))
    factor = gl.exp2(highest - new)
    sums = _scaled(sums, factor)
    acc = _scaled(acc, factor)
    acc = warpgroup_mma(weights, halves.index(opaque(gl.to_tensor(2 * OTHER + c))), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    gl.thread_barrier()  # all have read the maxima, which this consumer is to write next
    mbarrier.arrive(empty.index(OTHER), count=1)
    return acc, new, sums


@gluon.jit
def _total(sums, both, told, parity, c: gl.constexpr):
    """Sums of rows over the tiles of both consumers."""
    own = gl.convert_layout(gl.sum(sums, 1), gl.SliceLayout(1, SCORES))
    both.index(c).store(own)
    gl.thread_barrier()
    mbarrier.arrive(told.index(c), count=1)
    mbarrier.wait(told.index(1 - c), parity)
    other = both.index(1 - c).load(gl.SliceLayout(1, SCORES))
    return own + other


@gluon.jit
def _with_sinks(highest, total, sinks, head, exists):
    """(new maxima, new sums, factor of the accumulator) with each row's sink in the denominator."""
    sink = gl.load(sinks + head, mask=exists, other=0.0).to(gl.float32) * LOG2E
    new = gl.maximum(highest, sink)
    factor = gl.exp2(highest - new)
    return new, total * factor + gl.exp2(sink - new), factor


@gluon.jit
def _consumer(given, room, config: gl.constexpr, c: gl.constexpr):
    out, lse, sinks, lists, chunk, scale = given
    q_halves, q_last, q_full, q_empty = room[0]
    tiles, shared = room[1], room[2]
    both, told = room[3]
    HEADS: gl.constexpr = config.heads
    QUERIES: gl.constexpr = config.queries
    pairs = 0
    for turn in range(turns_of(chunk)):
        at = place_of(gl.program_id(0) + turn * gl.num_programs(0), lists, chunk, config)
        acc = gl.zeros((TILE, HALF), gl.float32, WIDE)
        highest = gl.full((TILE,), LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
        sums = thread_sum(gl.zeros((TILE, TILE), gl.float32, SCORES))
        mbarrier.wait(q_full.index(0), turn & 1)
        state = (acc, highest, sums)
        for pair in range(tiles_of(at.count) // 2):
            parity = (pairs + pair) & 1
            place = (2 * pair + c) * TILE
            if c == 1:
                state = _others(state, tiles, shared, parity, c)
            state = _own(state, (q_halves, q_last), tiles, shared, lists, at, place, parity, scale, c, config)
            if c == 0:
                state = _others(state, tiles, shared, parity, c)
        acc, highest, sums = state
        pairs += tiles_of(at.count) // 2
        total = _total(sums, both, told, turn & 1, c)
        row = gl.arange(0, TILE, gl.SliceLayout(1, SCORES))
        query, head = at.group * QUERIES + row // HEADS, at.head + row % HEADS
        exists = (query < chunk.queries) & (head < chunk.heads)
        if sinks is not None:
            highest, total, factor = _with_sinks(highest, total, sinks, head, exists)
        else:
            factor = 1.0
        acc = _scaled(acc, gl.where(total > 0, factor / total, 0.0))
        as_matrix(q_halves.index(c)).store(acc.to(out.dtype))
        if c == 0:
            to = (at.batch.to(gl.int64) * chunk.heads + head) * chunk.queries + query
            gl.store(lse + to, (highest + gl.log2(total)) * LN2, mask=exists)
        fence_async_shared()
        tma.async_copy_shared_to_global(out, [at.batch, at.group * QUERIES, at.head, c * HALF], q_halves.index(c))
        tma.store_wait(0)
        mbarrier.arrive(q_empty.index(0), count=1)
    settle()


@gluon.jit(do_not_specialize=["heads", "queries", "parts", "items", "groups", "places"])
def _kernel(
    q, q_rotary, latents, latent_row, latent_batch, out, lse, sinks, entries, counts, members,
    groups, places, heads, queries, parts, items, scale, config: gl.constexpr,
):  # fmt: skip
    q_halves = buffers(q, 2)
    q_last = buffers(q_rotary, 1)
    own = (q_halves, q_last, barriers(1, 1), barriers(1, 2))
    tiles = latents_in_memory(q.dtype, 2, 0, 2)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    weights = gl.allocate_shared_memory(q.dtype, [TILE, TILE], SWIZZLED)
    maxima = gl.allocate_shared_memory(gl.float32, [TILE], flat)
    both = gl.allocate_shared_memory(gl.float32, [2, TILE], flat)
    shared = (weights, maxima, barriers(2, 1))
    room = (own, tiles, shared, (both, barriers(2, 1)))
    lists, chunk = Lists(entries, counts, members, groups, places), Chunk(heads, queries, parts, items, 0)
    given = (out, lse, sinks, lists, chunk, scale * LOG2E)
    latents = Latents(latents, latent_row, latent_batch)
    gl.warp_specialize(
        [
            (_consumer, (given, room, config, 0)),
            (_consumer, (given, room, config, 1)),
            (_producer, ((q, q_rotary, latents, lists, chunk), (own, tiles), config)),
        ],
        WARPS,
        REGISTERS,
    )


def latent_forward(
    q: Tensor, latents: Tensor, lists: Sequence[Tensor | None], out: Tensor, lse: Tensor, sinks: Tensor | None,
    *, scale: float, packing: Packing,
) -> None:  # fmt: skip
    """Writes `out` [B, H, Q, 512] and the natural `lse` [B, H, Q] of q [B, H, Q, 576] over latents [B, K, 576].

    `lists` are entries int32 [B, groups, places], counts int32 [B, groups] and, where a group is several queries,
    members int32 like the entries.
    """
    launch(_prepared, (q, latents, out, lse, sinks, *lists), scale, packing)


def _prepared(operands: Operands, scale: float, packing: Packing) -> Launch:
    q, latents, out, lse, sinks, entries, counts, members = operands
    batch, heads, queries, _ = q.shape
    groups, places = entries.shape[1:]
    parts = -(-heads // packing.heads)
    items = batch * groups * parts
    arguments = (
        *(heads_tiles(q, packing, HALF.value), heads_tiles(q, packing, ROTARY.value)),
        *(latents, latents.stride(1) // VECTOR.value, latents.stride(0) // VECTOR.value),
        *(heads_tiles(out, packing, HALF.value), lse, sinks, entries, counts, members),
        *(groups, places, heads, queries, parts, items, scale),
    )
    return Launch(_kernel, items, arguments, (packing,))
