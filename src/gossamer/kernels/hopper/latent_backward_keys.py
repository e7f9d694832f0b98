"""What 64 rows of queries owe to each latent they chose, as rows of a scratch tensor that nobody else writes to.

The queries and the gradients of their outputs stay in shared memory, and tiles of latents pass by. One consumer
warpgroup makes the weights again, the other the gradients of the scores; they exchange both through shared memory, and
each adds up its half of the columns. A latent is needed for the scores alone, so that the next tile comes in while
these sums are made. The gradients of the scores are kept too: those of the queries are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    rows_tiles,
)
from .launch import Launch, Operands, launch
from .ring import LOG2E, TILE, barriers, opaque, settle, turns_of
from .sweep import buffers


def _vectors(columns: int) -> gl.DistributedLinearLayout:
    """Tiles [64, columns] as `in_threads` leaves them: eight neighbouring columns a thread, and 32 four threads."""
    further = [[0, 32 << n] for n in range((columns // 32).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], *further],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[TILE.value, columns],
    )


VECTORS, VECTORS_WIDE = gl.constexpr(_vectors(ROTARY.value)), gl.constexpr(_vectors(HALF.value))


class Scratch(NamedTuple):
    """What is written for every place of an item's list: [items, places, 576], by columns `in_threads`."""

    pointer: gl.tensor
    scores: gl.tensor
    """Descriptor of the gradients of the scores, whole tiles of 64 places."""


@gluon.jit
def _producer(given, room, config: gl.constexpr):
    q, q_rotary, grad, latents, lists, chunk = given
    q_halves, q_last, grad_halves, own_full, own_empty = room[0]
    halves, rotary, full, empty = room[1]
    QUERIES: gl.constexpr = config.queries
    done = 0
    for turn in range(turns_of(chunk)):
        at = place_of(gl.program_id(0) + turn * gl.num_programs(0), lists, chunk, config)
        entries, exists = listed(lists, at.batch, at.group, 0, at.count)
        for tile in range(gl.cdiv(at.count, TILE)):
            next_entries, next_exists = listed(lists, at.batch, at.group, (tile + 1) * TILE, at.count)
            mbarrier.wait(empty.index(0), (done & 1) ^ 1)
            gather(latents, at.batch, entries, exists, halves, rotary, 0)
            async_copy.mbarrier_arrive(full.index(0), increment_count=False)
            entries, exists = next_entries, next_exists
            done += 1
            if tile == 0:
                mbarrier.wait(own_empty.index(0), (turn & 1) ^ 1)
                ready = own_full.index(0)
                mbarrier.expect(ready, 4 * q.block_type.nbytes + q_rotary.block_type.nbytes)
                row = at.group * QUERIES
                for half in gl.static_range(2):
                    column = half * HALF
                    tma.async_copy_global_to_shared(q, [at.batch, row, at.head, column], ready, q_halves.index(half))
                    tma.async_copy_global_to_shared(
                        grad, [at.batch, row, at.head, column], ready, grad_halves.index(half)
                    )
                tma.async_copy_global_to_shared(q_rotary, [at.batch, row, at.head, 2 * HALF], ready, q_last.index(0))
        if at.count == 0:
            mbarrier.wait(own_empty.index(0), (turn & 1) ^ 1)
            mbarrier.arrive(own_full.index(0), count=1)
    settle()


@gluon.jit
def in_threads(x):
    """[64, columns] with the columns in the order in which a thread holds them, in each 32: column 8 j + 2 t + e of
    thread t as 8 t + 2 j + e. Nothing moves, and a thread stores 16 bytes at once."""
    COLUMNS: gl.constexpr = x.shape[1]
    split = gl.reshape(x, (TILE, COLUMNS // 32, 4, 4, 2))
    turned = gl.reshape(gl.permute(split, (0, 1, 3, 2, 4)), (TILE, COLUMNS))
    return gl.convert_layout(turned, VECTORS_WIDE if COLUMNS == HALF else VECTORS)


@gluon.jit
def _write(scratch, x, item, lists, place, count, column):
    """Rows of x, as far as places exist, from a column of the scratch on."""
    x = in_threads(x.to(scratch.dtype.element_ty))
    place = opaque(place)  # else what follows from it is kept in registers while the products are made
    places = place + gl.arange(0, TILE, gl.SliceLayout(1, x.type.layout))
    columns = gl.arange(0, x.shape[1], gl.SliceLayout(0, x.type.layout))
    rows = (item.to(gl.int64) * lists.places + places) * ((2 * HALF + ROTARY) // VECTOR) * VECTOR
    to = scratch + (gl.expand_dims(rows, 1) + gl.expand_dims(column + columns, 0))
    gl.store(to, x, mask=gl.expand_dims(places < count, 1))


@gluon.jit
def _row_values(x, at, chunk, missing, config: gl.constexpr):
    """Values [B, H, Q] of an item's 64 rows, which stand side by side."""
    HEADS: gl.constexpr = config.heads
    QUERIES: gl.constexpr = config.queries
    row = gl.arange(0, TILE, gl.SliceLayout(0, SCORES))
    query, head = at.group * QUERIES + row // HEADS, at.head + row % HEADS
    exists = (query < chunk.queries) & (head < chunk.heads)
    here = (at.batch.to(gl.int64) * chunk.heads + head) * chunk.queries + query
    return gl.load(x + here, mask=exists, other=missing)


@gluon.jit
def _weights(rows, tiles, lists, at, place, norm, scale, config: gl.constexpr):
    """[latents, rows] the weights again; zero where a row does not see the latent."""
    halves, rotary, empty = tiles[0], tiles[1], tiles[3]
    here = opaque(gl.to_tensor(0))
    s = products((halves.index(here), halves.index(here + 1), rotary.index(here)), own_rows(rows[0], rows[1]))
    s = warpgroup_mma_wait(0, deps=(s,))
    mbarrier.arrive(empty.index(0), count=1)
    p = gl.exp2(s * scale - gl.expand_dims(norm, 0))
    places = place + gl.arange(0, TILE, gl.SliceLayout(1, SCORES))
    if lists.members is None:
        return gl.where(gl.expand_dims(places < at.count, 1), p, 0.0)
    else:
        bits = members_of(lists, at, places)
        query = gl.arange(0, TILE, gl.SliceLayout(0, SCORES)) // config.heads
        return gl.where((gl.expand_dims(bits, 1) >> gl.expand_dims(query, 0)) & 1 != 0, p, 0.0)


@gluon.jit
def _first(given, room, config: gl.constexpr):
    """The consumer that makes the weights, and adds up the first half of the columns."""
    scratch, lse, _, lists, chunk, scale = given
    q_halves, q_last, grad_halves, own_full, own_empty = room[0]
    tiles, exchange = room[1], room[2]
    weights, due, made, free = exchange
    operand: gl.constexpr = gl.DotOperandLayout(0, WIDE, 2)
    done = 0
    for turn in range(turns_of(chunk)):
        item = gl.program_id(0) + turn * gl.num_programs(0)
        at = place_of(item, lists, chunk, config)
        norm = _row_values(lse, at, chunk, 0.0, config) * LOG2E
        norm = gl.where(norm == float("-inf"), float("inf"), norm)
        mbarrier.wait(own_full.index(0), turn & 1)
        for tile in range(gl.cdiv(at.count, TILE)):
            gathered(tiles[2].index(0), done & 1)
            rows = (q_halves, q_last)
            p = _weights(rows, tiles, lists, at, tile * TILE, norm, scale, config).to(weights.dtype)
            mbarrier.wait(free.index(0), (done & 1) ^ 1)
            weights.store(p)
            fence_async_shared()
            gl.thread_barrier()
            mbarrier.arrive(made.index(0), count=1)
            here = opaque(gl.to_tensor(0))
            acc = gl.zeros((TILE, HALF), gl.float32, WIDE)
            acc = warpgroup_mma(
                gl.convert_layout(p, operand), as_matrix(grad_halves.index(here)), acc, use_acc=False, is_async=True
            )
            gathered(made.index(1), done & 1)
            acc = warpgroup_mma(due, as_matrix(q_halves.index(here)), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            _write(scratch.pointer, acc, item, lists, tile * TILE, at.count, 0)
            done += 1
        mbarrier.arrive(own_empty.index(0), count=1)
    settle()


@gluon.jit
def _second(given, room, config: gl.constexpr):
    """The consumer that makes the gradients of the scores, and adds up the other columns."""
    scratch, _, delta, lists, chunk, scale = given
    q_halves, q_last, grad_halves, own_full, own_empty = room[0]
    tiles, exchange = room[1], room[2]
    halves, full, empty = tiles[0], tiles[2], tiles[3]
    weights, due, made, free = exchange
    operand: gl.constexpr = gl.DotOperandLayout(0, WIDE, 2)
    narrow: gl.constexpr = gl.DotOperandLayout(0, SCORES, 2)
    done = 0
    for turn in range(turns_of(chunk)):
        item = gl.program_id(0) + turn * gl.num_programs(0)
        at = place_of(item, lists, chunk, config)
        less = _row_values(delta, at, chunk, 0.0, config)
        mbarrier.wait(own_full.index(0), turn & 1)
        for tile in range(gl.cdiv(at.count, TILE)):
            gathered(full.index(0), done & 1)
            here = opaque(gl.to_tensor(0))
            dp = gl.zeros((TILE, TILE), gl.float32, SCORES)
            first, other = as_matrix(grad_halves.index(here)), as_matrix(grad_halves.index(here + 1))
            dp = warpgroup_mma(halves.index(here), first.permute((1, 0)), dp, use_acc=False, is_async=True)
            dp = warpgroup_mma(halves.index(here + 1), other.permute((1, 0)), dp, is_async=True)
            dp = warpgroup_mma_wait(0, deps=(dp,))
            mbarrier.arrive(empty.index(0), count=1)
            mbarrier.wait(made.index(0), done & 1)
            p = weights.load(SCORES).to(gl.float32)
            ds = (p * (dp - gl.expand_dims(less, 0)) * scale).to(due.dtype)
            tma.store_wait(0)
            due.store(ds)
            fence_async_shared()
            gl.thread_barrier()
            mbarrier.arrive(made.index(1), count=1)
            tma.async_copy_shared_to_global(
                scratch.scores, [(item * gl.cdiv(lists.places, TILE) + tile) * TILE, 0], due
            )
            here = opaque(gl.to_tensor(0))
            acc = gl.zeros((TILE, HALF), gl.float32, WIDE)
            last = gl.zeros((TILE, ROTARY), gl.float32, SCORES)
            acc = warpgroup_mma(
                gl.convert_layout(ds, operand), as_matrix(q_halves.index(here + 1)), acc, use_acc=False, is_async=True
            )
            last = warpgroup_mma(
                gl.convert_layout(ds, narrow), as_matrix(q_last.index(here)), last, use_acc=False, is_async=True
            )
            fence_async_shared()
            acc = warpgroup_mma(weights, as_matrix(grad_halves.index(here + 1)), acc, is_async=True)
            acc, last = warpgroup_mma_wait(0, deps=(acc, last))
            gl.thread_barrier()
            mbarrier.arrive(free.index(0), count=1)
            _write(scratch.pointer, acc, item, lists, tile * TILE, at.count, HALF)
            _write(scratch.pointer, last, item, lists, tile * TILE, at.count, 2 * HALF)
            done += 1
        mbarrier.arrive(own_empty.index(0), count=1)
    settle()


@gluon.jit(do_not_specialize=["heads", "queries", "parts", "items", "first", "groups", "places"])
def _kernel(
    q, q_rotary, grad, latents, latent_row, latent_batch, lse, delta, entries, counts, members, scratch, scores,
    groups, places, heads, queries, parts, items, first, scale, config: gl.constexpr,
):  # fmt: skip
    own = (buffers(q, 2), buffers(q_rotary, 1), buffers(grad, 2), barriers(1, 1), barriers(1, 2))
    tiles = latents_in_memory(q.dtype, 1, 0, 2)
    weights = gl.allocate_shared_memory(q.dtype, [TILE, TILE], SWIZZLED)
    due = gl.allocate_shared_memory(q.dtype, [TILE, TILE], SWIZZLED)
    room = (own, tiles, (weights, due, barriers(2, 1), barriers(1, 1)))
    lists, chunk = Lists(entries, counts, members, groups, places), Chunk(heads, queries, parts, items, first)
    latents = Latents(latents, latent_row, latent_batch)
    scratch = Scratch(scratch, scores)
    gl.warp_specialize(
        [
            (_first, ((scratch, lse, delta, lists, chunk, scale * LOG2E), room, config)),
            (_second, ((scratch, lse, delta, lists, chunk, scale), room, config)),
            (_producer, ((q, q_rotary, grad, latents, lists, chunk), (own, tiles), config)),
        ],
        WARPS,
        REGISTERS,
    )


def latent_backward_keys(
    inputs: Sequence[Tensor], lists: Sequence[Tensor | None], scratch: Tensor, scores: Tensor,
    *, scale: float, packing: Packing, chunk: tuple[int, int],
) -> None:  # fmt: skip
    """Writes what the groups of a chunk (first, count), of all sequences laid end to end, owe to their latents.

    `inputs` are q [B, H, Q, 576], the gradient of the output [B, H, Q, 512], latents [B, K, 576], and lse and delta
    [B, H, Q] in float32. `scratch` [groups · parts, places, 576] takes the latents' gradients, columns `in_threads`,
    and `scores` [groups · parts, places up to a multiple of 64, 64] those of the scores.
    """
    launch(_prepared, (*inputs, *lists, scratch, scores), scale, packing, chunk)


def _prepared(operands: Operands, scale: float, packing: Packing, chunk: tuple[int, int]) -> Launch:
    q, grad, latents, lse, delta, entries, counts, members, scratch, scores = operands
    _, heads, queries, _ = q.shape
    groups, places = entries.shape[1:]
    parts = -(-heads // packing.heads)
    items = chunk[1] * parts
    arguments = (
        *(heads_tiles(q, packing, HALF.value), heads_tiles(q, packing, ROTARY.value)),
        heads_tiles(grad, packing, HALF.value),
        *(latents, latents.stride(1) // VECTOR.value, latents.stride(0) // VECTOR.value),
        *(lse, delta, entries, counts, members, scratch, rows_tiles(scores)),
        *(groups, places, heads, queries, parts, items, chunk[0], scale),
    )
    return Launch(_kernel, items, arguments, (packing,))
