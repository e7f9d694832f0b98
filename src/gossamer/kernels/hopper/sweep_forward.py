"""Attention forward over any runs of keys: a team with 64 queries each shares every K/V tile that one warp brings in.

A work item is a query tile for each of the team: the same 64 queries of heads that share a key head, else neighbouring
queries of one head. A consumer begins the scores of one tile of keys and the product of the last tile's probabilities
with its values together; the softmax of the former runs under the latter. Tiles count from the last key that the team
sees, so that an aligned causal window has one triangle, and only a tile that some row sees partly is masked.

A second segment (gathered columns beside a band) is further tiles of the same online softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from .bands import Rows
from .configs import ROWS, SweepConfig, team_of, tile_width
from .descriptors import tiles
from .division import Divisor, divisor
from .launch import Launch, Operands, launch
from .operands import Diagonal, Segment, segments_of, tensors_of
from .rescale import raised, rescaled
from .ring import LN2, LOG2E, LOWEST, TILE, phase, row_max, settle, slot, thread_sum, tile_of
from .sweep import (
    HEADS,
    NUMBERS,
    Edges,
    Reach,
    Run,
    Shape,
    as_a_team,
    barriers_of,
    buffers,
    empty,
    full,
    own_empty,
    own_full,
    own_turns,
    pass_over,
    query_place,
    query_work,
    reach_of,
    result_of,
    runs_of,
    seen,
    span_of,
    team_row_of,
    turns_of,
    work_given,
)

SLOTS = {(64, 64): 8, (64, 128): 6, (128, 64): 6, (128, 128): 5}
"""Tiles in the ring, by the widths of K's and of V's tiles."""


class Way(NamedTuple):
    """A query tile's way through a segment: tiles `first … last - 1` of the ring; tile i begins at `origin - 64 i`."""

    first: gl.tensor
    last: gl.tensor
    origin: gl.tensor
    reach: Reach


@gluon.jit
def _team_tiles(run, batch, row, shape, fewest: gl.constexpr, config: gl.constexpr):
    """(end, tiles): a team sees no key from `end` on, and what it sees lies in so many tiles before that."""
    TEAM_ROWS: gl.constexpr = config.rows
    begin, end = span_of(run.edges, batch, row, TEAM_ROWS, shape.queries)
    return end, gl.maximum(gl.cdiv(end - begin, TILE), fewest)


@gluon.jit
def _way(run, team_row, place, base, shape, fewest: gl.constexpr, layout: gl.constexpr, config: gl.constexpr):
    """(the way through a segment whose tiles begin at `base` of the ring, where they end); `fewest` tiles at least."""
    end, count = _team_tiles(run, place.batch, team_row, shape, fewest, config)
    reach = reach_of(run.edges, place, shape.queries, layout)
    first = gl.minimum((end - reach.last_end) // TILE, count - fewest)
    last = gl.maximum(gl.cdiv(end - reach.first_begin, TILE), first + fewest)
    origin = end + (base - 1) * TILE
    return Way(base + first, base + last, origin, reach), base + count


@gluon.jit
def _along(passed, one, two):
    """What masks a tile of the first way, or of the second once that is `passed`: (its origin, what rows see)."""
    reach = Reach(
        one.reach.first_begin,
        gl.where(passed, two.reach.last_begin, one.reach.last_begin),
        gl.where(passed, two.reach.first_end, one.reach.first_end),
        one.reach.last_end,
        gl.where(passed, two.reach.begin, one.reach.begin),
        gl.where(passed, two.reach.end, one.reach.end),
    )
    return gl.where(passed, two.origin, one.origin), reach


@gluon.jit
def _scores(q, k_tiles, i, layout: gl.constexpr, config: gl.constexpr):
    """q @ k^T, begun, with the ring's tile i."""
    k = tile_of(k_tiles, i, config.slots).permute((1, 0))
    return warpgroup_mma(q, k, gl.zeros((TILE, TILE), gl.float32, layout), use_acc=False, is_async=True)


@gluon.jit
def _softmax(scores, key, reach, highest, scale):
    """(probabilities, new maxima in units of log2) of the tile that begins at `key`."""
    scores = seen(scores, reach, key, float("-inf"))
    highest = raised(highest, row_max(scores) * scale)
    return gl.exp2(scores * scale - gl.expand_dims(highest, 1)), highest


@gluon.jit
def _scaled(x, factor):
    """Rows of x times their factor, in x's layout."""
    return x * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, x.type.layout)), 1)


@gluon.jit
def _await_next(i, turn, two, wanted, bars, config: gl.constexpr):
    """The ring's tile after tile i of a query tile's way, once it is there; without a wait where none is `wanted`.

    At `turn`, the way turns to its second segment.
    """
    i += config.step
    if config.segments == 2:
        turns = wanted & (i == turn)
        if turns:
            pass_over(bars, i, two.first, config)
            i = two.first
    mbarrier.wait(full(bars, i, config), phase(i, config.slots), pred=wanted)
    return i


@gluon.jit
def _attend(
    q, q_read, ring, bars, one, two, highest, scale, layout: gl.constexpr, c: gl.constexpr, config: gl.constexpr
):
    """(accumulator, maxima, sums held by threads, last tile) of one query tile along one way, or two.

    Where consumers take turns, each takes one tile at least; the ring holds the turns before, at and after a tile.
    The barrier `q_read` hears that q is in registers once that costs nothing: under the first scores.
    """
    k_tiles, v_tiles = ring
    SLOTS: gl.constexpr = config.slots
    WIDTH: gl.constexpr = v_tiles.shape[4]
    joint: gl.constexpr = config.segments == 2
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    skipped, steps = own_turns(one.first, one.last, c, config)
    turn = one.last
    if joint:
        # The two tiles before the turn are held until the first one after it is there: the ring has to hold all three.
        turn = gl.maximum(one.last, two.first - (SLOTS - 3))
        steps = turn - one.first + two.last - two.first
    before = one.first + skipped
    mbarrier.wait(full(bars, before, config), phase(before, SLOTS))
    scores = _scores(q, k_tiles, before, layout, config)
    mbarrier.arrive(q_read, count=1)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    wide, highest = _softmax(scores, one.origin - before * TILE, one.reach, highest, scale)
    sums = thread_sum(wide)
    p = gl.convert_layout(wide.to(v_tiles.dtype), operand)
    acc = gl.zeros((TILE, WIDTH), gl.float32, acc_layout)
    i = _await_next(before, turn, two, steps > 1, bars, config)
    for step in range(1, steps):
        scores = _scores(q, k_tiles, i, layout, config)
        acc = warpgroup_mma(p, tile_of(v_tiles, before, SLOTS), acc, is_async=True)
        origin, reach = one.origin, one.reach
        if joint:
            origin, reach = _along(i >= two.first, one, two)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        wide, new_highest = _softmax(scores, origin - i * TILE, reach, highest, scale)
        factor = gl.exp2(highest - new_highest)
        highest = new_highest
        sums = _scaled(sums, factor) + thread_sum(wide)
        # Between the softmax and the wait for the product under which it runs, or else ptxas moves it below that wait.
        then = _await_next(i, turn, two, step + 1 < steps, bars, config)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty(bars, before, config), count=1)
        acc = rescaled(acc, factor)
        p = gl.convert_layout(wide.to(v_tiles.dtype), operand)
        before, i = i, then
    acc = warpgroup_mma(p, tile_of(v_tiles, before, SLOTS), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty(bars, before, config), count=1)
    return acc, highest, sums, before


@gluon.jit
def _write(out_desc, out, lse, place, acc, highest, sums, rows_written, layout: gl.constexpr):
    """Divides by the sums and stores a tile of `out` and `lse`; what lies beyond the tensors is left alone."""
    acc = _scaled(acc, gl.where(sums > 0, 1 / sums, 0))
    tma.store_wait(0)
    out.reshape((out.shape[2], out.shape[3])).store(acc.to(out.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [place.batch, place.head, place.row, 0], out)
    pointer = lse.pointer + place.batch.to(gl.int64) * lse.batch + place.head.to(gl.int64) * lse.head
    rows = place.row + gl.arange(0, TILE, gl.SliceLayout(1, layout))
    gl.store(pointer + rows, (highest + gl.log2(sums)) * LN2, mask=rows < rows_written)


@gluon.jit
def _consumer(given, config: gl.constexpr, c: gl.constexpr):
    """One query tile of every item."""
    runs, own, out_desc, lse, sinks, ring, bars, work, shape, scale = given
    IN_TURN: gl.constexpr = config.in_turn
    q_tiles, out_tiles = own
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    joint: gl.constexpr = config.segments == 2
    base = 0
    for turn in range(turns_of(work)):
        place = query_place(turn, work, shape, c, config)
        team_row = team_row_of(place, c, config)
        one, after = _way(runs[0], team_row, place, base, shape, config.step, layout, config)
        two = one
        if joint:
            two, after = _way(runs[1], team_row, place, after, shape, 0, layout, config)
        highest = gl.full([TILE], LOWEST, gl.float32, gl.SliceLayout(1, layout))
        if sinks is not None:
            sink = gl.load(sinks + place.head).to(gl.float32) * LOG2E
            highest = gl.maximum(highest, sink)
        mbarrier.wait(own_full(bars, c, config), turn & 1)
        q = q_tiles.index(c).reshape((TILE, q_tiles.shape[4])).load(gl.DotOperandLayout(0, layout, 2))
        if not IN_TURN:
            pass_over(bars, base, one.first, config)
        q_read = own_empty(bars, c, config)
        acc, highest, sums, i = _attend(q, q_read, ring, bars, one, two, highest, scale, layout, c, config)
        if not IN_TURN:
            pass_over(bars, i + 1, after, config)
        sums = gl.convert_layout(gl.sum(sums, 1), gl.SliceLayout(1, layout))
        if sinks is not None:
            sums += gl.exp2(sink - highest)
        to = result_of(place, c, config)
        _write(out_desc, out_tiles.index(c), lse, to, acc, highest, sums, shape.queries * config.step, layout)
        base = after
    settle()


@gluon.jit
def _bring_keys(run, ring, bars, place, end, start, stop, config: gl.constexpr):
    """Keys and values as tiles start ... stop - 1 of the ring, the first up to `end`, each before the last."""
    size: gl.constexpr = run.k.block_type.nbytes + run.v.block_type.nbytes
    SLOTS: gl.constexpr = config.slots
    for i in range(start, stop):
        at = [place.batch, place.key_head, end - (i - start + 1) * TILE, 0]
        ready = full(bars, i, config)
        mbarrier.wait(empty(bars, i, config), phase(i, SLOTS) ^ 1)
        mbarrier.expect(ready, size)
        tma.async_copy_global_to_shared(run.k, at, ready, ring[0].index(slot(i, SLOTS)))
        tma.async_copy_global_to_shared(run.v, at, ready, ring[1].index(slot(i, SLOTS)))


@gluon.jit
def _producer(brought, config: gl.constexpr):
    """Brings the query tiles of each item, then its tiles of keys and values from the last to the first."""
    CONSUMERS: gl.constexpr = config.team.consumers
    runs, q_desc, q_tiles, ring, bars, work, shape = brought
    done = 0
    SEGMENTS: gl.constexpr = config.segments
    for turn in range(turns_of(work)):
        for c in gl.static_range(CONSUMERS):
            place = query_place(turn, work, shape, c, config)
            mbarrier.wait(own_empty(bars, c, config), (turn & 1) ^ 1)
            ready = own_full(bars, c, config)
            mbarrier.expect(ready, q_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [place.batch, place.head, place.row, 0], ready, q_tiles.index(c))
        place = query_place(turn, work, shape, 0, config)
        for s in gl.static_range(SEGMENTS):
            end, count = _team_tiles(runs[s], place.batch, place.row, shape, (1 - s) * config.step, config)
            _bring_keys(runs[s], ring, bars, place, end, done, done + count, config)
            done += count


@gluon.jit(do_not_specialize=[*NUMBERS, *HEADS, "lse_batch", "lse_head", "queries"])
def _kernel(
    q, out, k, v, start, stop, shift, breadth, columns, apart, k2, v2, start2, stop2, sinks, lse,
    lse_batch, lse_head, scale, heads, heads_reciprocal, repeats, repeats_reciprocal, queries,
    items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
    config: gl.constexpr,
):  # fmt: skip
    SLOTS: gl.constexpr = config.slots
    CONSUMERS: gl.constexpr = config.team.consumers
    q_tiles, out_tiles = buffers(q, CONSUMERS), buffers(out, CONSUMERS)
    ring = (buffers(k, SLOTS), buffers(v, SLOTS))
    bars = barriers_of(config)
    work = work_given(
        items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal
    )  # fmt: skip
    shape = Shape(Divisor(heads, heads_reciprocal), Divisor(repeats, repeats_reciprocal), queries)
    rows = Rows(lse, lse_batch, lse_head)
    one, two = Edges(start, stop, shift, breadth, columns, apart), Edges(start2, stop2, 0, 0, 0, apart)
    runs = (Run(k, v, one),) if k2 is None else (Run(k, v, one), Run(k2, v2, two))
    own = (q_tiles, out_tiles)
    given = (runs, own, out, rows, sinks, ring, bars, work, shape, scale)
    brought = (runs, q, q_tiles, ring, bars, work, shape)
    as_a_team(_consumer, given, _producer, brought, config)


def forward(
    q: Tensor,
    segments: Sequence[Segment],
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    *,
    scale: float,
    in_turn: bool = False,
) -> None:
    """Writes `out` and the natural `lse` of queries that see runs of one or two segments, in one softmax.

    The scale is positive; start and stop never fall from a query to the next.

    `in_turn` is for tiles of 64 queries that see one run each, of one segment. A team's warpgroups take turns at the
    keys, and `out` and `lse` are longer than the queries by their number: a tile of queries has a part of each in turn.
    """
    launch(_prepared, (q, out, lse, sinks, *tensors_of(segments)), segments[0].diagonal, scale, in_turn)


def _prepared(operands: Operands, diagonal: Diagonal | None, scale: float, in_turn: bool) -> Launch:
    q, out, lse, sinks, *rest = operands
    segments = segments_of(rest, diagonal)
    heads, queries = q.shape[1:3]
    repeats = heads // segments[0].k.shape[1]
    widths = tile_width(q.shape[3]), tile_width(out.shape[3])
    team = team_of(*widths, None if in_turn else repeats)
    config = SweepConfig(team, SLOTS[widths], len(segments), in_turn=in_turn)
    work = query_work(config, q, segments)
    arguments = (
        *(tiles(q, ROWS, widths[0]), tiles(out, ROWS, widths[1])),
        *(*runs_of(segments, ROWS, *widths), sinks),
        *(lse, lse.stride(0), lse.stride(1), scale * LOG2E.value, *divisor(heads), *divisor(repeats), queries),
        *work,
    )
    return Launch(_kernel, work[0], arguments, (config,), config.team.consumers)
