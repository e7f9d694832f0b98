"""Gradients of queries over chosen latents, from the gradients of their scores, which another kernel has kept.

Latents are gathered once more, two tiles at a time in shared memory; two consumer warpgroups add up half of the columns
each, and the second the rotary columns besides.
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
    place_of,
    rows_tiles,
)
from .launch import Launch, Operands, launch
from .ring import TILE, settle, turns_of
from .sweep import buffers

SLOTS = gl.constexpr(2)


@gluon.jit
def _producer(given, room, config: gl.constexpr):
    scores, latents, lists, chunk = given
    halves, rotary, full, empty = room[0]
    due = room[1]
    done = 0
    for turn in range(turns_of(chunk)):
        item = gl.program_id(0) + turn * gl.num_programs(0)
        at = place_of(item, lists, chunk, config)
        entries, exists = listed(lists, at.batch, at.group, 0, at.count)
        for tile in range(gl.cdiv(at.count, TILE)):
            i = done & 1
            next_entries, next_exists = listed(lists, at.batch, at.group, (tile + 1) * TILE, at.count)
            mbarrier.wait(empty.index(i), ((done >> 1) & 1) ^ 1)
            mbarrier.expect(full.index(i), scores.block_type.nbytes)
            tma.async_copy_global_to_shared(
                scores, [(item * gl.cdiv(lists.places, TILE) + tile) * TILE, 0], full.index(i), due.index(i)
            )
            gather(latents, at.batch, entries, exists, halves, rotary, i)
            async_copy.mbarrier_arrive(full.index(i), increment_count=False)
            entries, exists = next_entries, next_exists
            done += 1
    settle()


@gluon.jit
def _add(acc, due, tile):
    """acc + the gradients of scores, which lie [latents, rows], times latents: begun."""
    return warpgroup_mma(due.permute((1, 0)), tile, acc, is_async=True)


@gluon.jit
def _store(dq, stage, acc, at, c: gl.constexpr, config: gl.constexpr):
    """A half of the columns, through shared memory."""
    tma.store_wait(0)
    as_matrix(stage).store(acc.to(stage.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(dq, [at.batch, at.group * config.queries, at.head, c * HALF], stage)


@gluon.jit
def _store_rotary(pointer, strides, last, at, chunk, config: gl.constexpr):
    HEADS: gl.constexpr = config.heads
    row = gl.arange(0, TILE, gl.SliceLayout(1, SCORES))
    query, head = at.group * config.queries + row // HEADS, at.head + row % HEADS
    exists = (query < chunk.queries) & (head < chunk.heads)
    rows = at.batch.to(gl.int64) * strides[0] + head.to(gl.int64) * strides[1] + query.to(gl.int64) * strides[2]
    columns = 2 * HALF + gl.arange(0, ROTARY, gl.SliceLayout(0, SCORES))
    to = pointer + (gl.expand_dims(rows * VECTOR, 1) + gl.expand_dims(columns, 0))
    gl.store(to, last.to(pointer.dtype.element_ty), mask=gl.expand_dims(exists, 1))


@gluon.jit
def _consumer(given, room, config: gl.constexpr, c: gl.constexpr):
    dq, pointer, strides, lists, chunk = given
    halves, rotary, full, empty = room[0]
    due, stages = room[1], room[2]
    done = 0
    for turn in range(turns_of(chunk)):
        at = place_of(gl.program_id(0) + turn * gl.num_programs(0), lists, chunk, config)
        acc = gl.zeros((TILE, HALF), gl.float32, WIDE)
        last = gl.zeros((TILE, ROTARY), gl.float32, SCORES)
        for _ in range(gl.cdiv(at.count, TILE)):
            i = done & 1
            gathered(full.index(i), (done >> 1) & 1)
            acc = _add(acc, due.index(i), halves.index(2 * i + c))
            if c == 1:
                last = _add(last, due.index(i), rotary.index(i))
                acc, last = warpgroup_mma_wait(0, deps=(acc, last))
            else:
                acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(empty.index(i), count=1)
            done += 1
        _store(dq, stages.index(c), acc, at, c, config)
        if c == 1:
            _store_rotary(pointer, strides, last, at, chunk, config)
    settle()


@gluon.jit(do_not_specialize=["heads", "queries", "parts", "items", "first", "groups", "places"])
def _kernel(
    scores, latents, latent_row, latent_batch, dq, pointer, batch_stride, head_stride, row_stride,
    entries, counts, members, groups, places, heads, queries, parts, items, first, config: gl.constexpr,
):  # fmt: skip
    tiles = latents_in_memory(dq.dtype, SLOTS, 1, 2)
    due = gl.allocate_shared_memory(dq.dtype, [SLOTS, TILE, TILE], SWIZZLED)
    lists, chunk = Lists(entries, counts, members, groups, places), Chunk(heads, queries, parts, items, first)
    strides = (batch_stride, head_stride, row_stride)
    room = (tiles, due, buffers(dq, 2))
    given = (dq, pointer, strides, lists, chunk)
    gl.warp_specialize(
        [
            (_consumer, (given, room, config, 0)),
            (_consumer, (given, room, config, 1)),
            (_producer, ((scores, Latents(latents, latent_row, latent_batch), lists, chunk), room, config)),
        ],
        WARPS,
        REGISTERS,
    )


def latent_backward_queries(
    scores: Tensor, latents: Tensor, lists: Sequence[Tensor | None], dq: Tensor,
    *, packing: Packing, chunk: tuple[int, int],
) -> None:  # fmt: skip
    """Writes `dq` [B, H, Q, 576] of the groups of a chunk, from their `scores`, as another kernel has kept them."""
    launch(_prepared, (scores, latents, dq, *lists), packing, chunk)


def _prepared(operands: Operands, packing: Packing, chunk: tuple[int, int]) -> Launch:
    scores, latents, dq, entries, counts, members = operands
    _, heads, queries, _ = dq.shape
    groups, places = entries.shape[1:]
    parts = -(-heads // packing.heads)
    items = chunk[1] * parts
    arguments = (
        *(rows_tiles(scores), latents, latents.stride(1) // VECTOR.value, latents.stride(0) // VECTOR.value),
        *(heads_tiles(dq, packing, HALF.value), dq, *(x // VECTOR.value for x in dq.stride()[:3])),
        *(entries, counts, members, groups, places, heads, queries, parts, items, chunk[0]),
    )
    return Launch(_kernel, items, arguments, (packing,))
