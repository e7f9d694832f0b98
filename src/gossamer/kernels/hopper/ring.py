"""What all kernels of this folder share: a ring of tiles in shared memory, walks over tiles, and triangular masks."""

from __future__ import annotations

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma

TILE = gl.constexpr(64)
"""Queries of a query tile and keys of a key tile: the rows of one warpgroup's matrix instruction."""

AUX = gl.constexpr(16)
"""Numbers of a query's auxiliary row, which the gradients of keys read: the depth of one matrix step."""

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
LOWEST = gl.constexpr(-1e30)
"""A running maximum before the first score: finite, so that rows without keys give no NaN."""


class Run(NamedTuple):
    """One program's share of all heads' tiles laid end to end: tiles start ... stop - 1."""

    start: gl.tensor
    stop: gl.tensor


class Place(NamedTuple):
    """Where a tile stands: in the tensor, and its diagonal's index among the tiles that pass through the ring."""

    batch: gl.tensor
    head: gl.tensor
    tile: gl.tensor
    ring: gl.tensor


@gluon.jit
def turns_of(work):
    """How many items this program takes."""
    return gl.cdiv(work.items - gl.program_id(0), gl.num_programs(0))


@gluon.jit
def slot(i, slots: gl.constexpr):
    """Where the ring holds its i-th tile."""
    if slots & (slots - 1) == 0:
        return i & (slots - 1)
    else:
        return i % slots


@gluon.jit
def phase(i, slots: gl.constexpr):
    """The parity of a barrier's phase when its slot holds the i-th tile."""
    if slots & (slots - 1) == 0:
        return ((i & slots) != 0).to(gl.int32)
    else:
        return (i // slots) & 1


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """`count` barriers, each complete after `arrivals` arrivals."""
    made = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(made.index(i), count=arrivals)
    return made


@gluon.jit
def move_to(full, empty, seen, oldest, stop, slots: gl.constexpr):
    """Waits for tiles oldest ... stop - 1 of the ring, where `seen` came before.

    Tiles between, which only the other warpgroup's last or next head needs, are handed back as they come: the producer
    may wait for their slots.
    """
    for n in range(0, oldest - seen):  # Triton 3.6 drops a carried variable that is only the bound of another loop
        x = seen + n
        mbarrier.wait(full.index(slot(x, slots)), phase(x, slots))
        mbarrier.arrive(empty.index(slot(x, slots)), count=1)
    start = gl.maximum(seen, oldest)
    for n in range(0, stop - start):
        x = start + n
        mbarrier.wait(full.index(slot(x, slots)), phase(x, slots))


@gluon.jit
def release(empty, start, stop, slots: gl.constexpr):
    """Says that this warpgroup needs tiles start ... stop - 1 of the ring no more."""
    for n in range(0, stop - start):
        x = start + n
        mbarrier.arrive(empty.index(slot(x, slots)), count=1)


@gluon.jit
def programs_of(work):
    """How many programs there are, asked anew each time: else the compiler keeps a register for it throughout.

    Inline assembly takes at least one operand, and does nothing with the `work`.
    """
    return gl.inline_asm_elementwise("mov.u32 $0, %nctaid.x;", "=r,r", [work], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def run_of(total):
    """This program's run: all are equally long, but the first few that take one tile more."""
    index, programs = gl.program_id(0), programs_of(total)
    start = index * (total // programs) + gl.minimum(index, total % programs)
    return Run(start, start + total // programs + (index < total % programs).to(gl.int32))


@gluon.jit
def place_of(index, band, before):
    """The place of a run's first tile; `before` tiles go through the ring ahead of its diagonal."""
    head = index // band.tiles
    return Place(head // band.heads, head % band.heads, index % band.tiles, before)


@gluon.jit
def first_query_tile(run, band, halo: gl.constexpr):
    """The place of a run's first query tile; it may see `halo` key tiles before its diagonal, as far as they exist."""
    at = place_of(run.start, band, 0)
    return Place(at.batch, at.head, at.tile, gl.minimum(at.tile + band.extra, halo))


@gluon.jit
def after(place, band, steps: gl.constexpr):
    """The place `steps` tiles on, without a division."""
    batch, head, tile, ring = place.batch, place.head, place.tile, place.ring
    for _ in gl.static_range(steps):
        tile += 1
        wraps = tile == band.tiles
        tile = gl.where(wraps, 0, tile)
        ring += gl.where(wraps, band.extra + 1, 1)
        head += wraps.to(gl.int32)
        wraps = head == band.heads
        head = gl.where(wraps, 0, head)
        batch += wraps.to(gl.int32)
    return Place(batch, head, tile, ring)


@gluon.jit
def rows_at(rows, place):
    """Pointer to the first value of the place's head."""
    return rows.pointer + place.batch.to(gl.int64) * rows.batch + place.head.to(gl.int64) * rows.head


@gluon.jit
def settle():
    """Waits for all that a warpgroup has stored, before it ends and its registers go to others.

    ptxas 12.8 does not wait for plain stores and loads there, which may still have to use the registers.
    """
    tma.store_wait(0)
    fence_async_shared()


@gluon.jit
def opaque(x):
    """Hides where a value comes from: what follows from it is computed where it is needed, and not kept until there."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def in_turn(x, turn):
    """x, as if it were another in every turn: masks made from it are made anew in each, and not kept live."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,r", [x, turn], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def triangle(rows, columns, turn):
    """(a, b) with row - column = a - b, where b is a constant in every register: masks compare against constants.

    A thread of a matrix instruction holds columns 8 i + 2 (lane % 4) + {0, 1} of two rows, 8 apart: one a serves both,
    so that all but two of the second row's comparisons are the first's.
    """
    a = gl.expand_dims(in_turn(rows & ~8, turn), 1) - gl.expand_dims(columns & 6, 0)
    return a, gl.expand_dims(columns & ~6, 0) - gl.expand_dims(rows & 8, 1)


@gluon.jit
def where_seen(s, masks, u, start, width, keys):
    """Scores of the tile `u` before the diagonal's, -inf where a row does not see the key or there is none.

    The first key stands at `start`. It serves the few tiles of which some keys do not exist.
    """
    row, column, _, _ = masks
    key = gl.expand_dims(gl.arange(0, TILE, gl.SliceLayout(0, s.type.layout)), 0)
    seen = (row + u * TILE >= column) & (row + u * TILE - width < column)
    return gl.where(seen & (key >= -start) & (key < keys - start), s, float("-inf"))


@gluon.jit
def mask_of(seen):
    """What is seen, as `split` takes it: 0 or -1 as int16."""
    return gl.where(seen, -1, 0).to(gl.int16)


@gluon.jit
def split(p, mask, dtype: gl.constexpr):
    """p rounded, as (where the mask is set, elsewhere) with zeros between; the mask is of `mask_of`."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "{ .reg .b32 t, n; cvt.rn.bf16x2.f32 t, $3, $2; not.b32 n, $4; and.b32 $0, t, $4; and.b32 $1, t, n; }",
            "=r,=r,f,f,r",
            [p, mask],
            dtype=(gl.bfloat16, gl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        return gl.inline_asm_elementwise(
            "{ .reg .b32 t, n; cvt.rn.f16x2.f32 t, $3, $2; not.b32 n, $4; and.b32 $0, t, $4; and.b32 $1, t, n; }",
            "=r,=r,f,f,r",
            [p, mask],
            dtype=(gl.float16, gl.float16),
            is_pure=True,
            pack=2,
        )


@gluon.jit
def tile_of(ring, i, slots: gl.constexpr):
    """The ring's i-th tile, as a matrix [rows, width]."""
    return ring.index(slot(i, slots)).reshape((ring.shape[3], ring.shape[4]))


@gluon.jit
def first_rows(tile, rows: gl.constexpr):
    """The first rows of a tile in shared memory [64, width]."""
    if rows == TILE:
        return tile
    else:
        return tile.slice(0, rows)


@gluon.jit
def times_transposed(a, b, layout: gl.constexpr):
    """a @ b^T, begun: a [64, D] in registers or shared memory, b [64 or fewer, D] in shared memory."""
    ROWS: gl.constexpr = b.shape[0]
    zeros = gl.zeros((TILE, ROWS), gl.float32, layout)
    return warpgroup_mma(a, b.permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def thread_sum(p):
    """[64, keys] -> [64, 4]: sums of what each thread holds; the four threads of a row are added at the very end."""
    return gl.sum(gl.sum(gl.reshape(p, (p.shape[0], p.shape[1] // 8, 4, 2)), 3), 1)


@gluon.jit
def row_max(scores):
    """[64, keys] -> [64], a tree in each thread: a chain through what it holds of a row is three times as deep."""
    layout: gl.constexpr = gl.SliceLayout(1, scores.type.layout)
    pairs = gl.max(gl.reshape(scores, (scores.shape[0], scores.shape[1] // 16, 2, 4, 2)), 4)
    return gl.convert_layout(gl.max(gl.max(gl.max(pairs, 2), 1), 1), layout)


@gluon.jit
def in_three(x):
    """x (float32) as a sum of three bfloat16."""
    high = x.to(gl.bfloat16)
    x -= high.to(gl.float32)
    middle = x.to(gl.bfloat16)
    low = (x - middle.to(gl.float32)).to(gl.bfloat16)
    return high, middle, low
