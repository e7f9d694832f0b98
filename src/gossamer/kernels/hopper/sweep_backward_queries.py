"""The gradient of queries over runs of keys of any length: a team shares every tile that one warp brings in.

A work item is a query tile for each of the team: the same 64 queries of heads that share a key head, else neighbouring
queries of one head. The kernel forms delta = rowsum(dO O) less the log-sum-exp's gradient, finishes dQ in registers,
and leaves log-sum-exp and delta for the gradients of keys and values (see `sweep_backward_keys`).
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
from .division import Divisor
from .ring import AUX, LOG2E, TILE, first_rows, in_three, opaque, phase, settle, slot, tile_of, times_transposed
from .sweep import (
    HEADS,
    NUMBERS,
    Edges,
    Run,
    Shape,
    as_a_team,
    barriers_of,
    buffers,
    empty,
    full,
    operand_of,
    own_empty,
    own_full,
    own_turns,
    pass_over,
    query_place,
    reach_of,
    renewed,
    result_of,
    seen,
    span_of,
    team_row_of,
    turns_of,
    words_of,
    work_given,
)

ABSENT = gl.constexpr(2.0**100)
"""Stands for the log-sum-exp of a query that sees nothing: its probabilities become 0, and nothing becomes NaN."""


@gluon.jit
def _span(segment, team_row, place, queries, s: gl.constexpr, config: gl.constexpr):
    """What a team sees of segment s: of few keys all as one tile, so that they are the tile's first."""
    ROWS: gl.constexpr = config.rows
    if s == 1 and config.second_rows < TILE:
        return gl.to_tensor(0), gl.to_tensor(TILE)
    else:
        return span_of(segment.edges, place.batch, team_row, ROWS, queries)


@gluon.jit
def _bring_own(own, bars, place, turn, consumer: gl.constexpr, config: gl.constexpr):
    """One consumer's tiles of Q, dO and O."""
    descriptors, tiles = own
    size: gl.constexpr = descriptors[0].block_type.nbytes + 2 * descriptors[1].block_type.nbytes
    ready = own_full(bars, consumer, config)
    mbarrier.wait(own_empty(bars, consumer, config), (turn & 1) ^ 1)
    mbarrier.expect(ready, size)
    for i in gl.static_range(3):
        tma.async_copy_global_to_shared(
            descriptors[i], [place.batch, place.head, place.row, 0], ready, tiles[i].index(consumer)
        )


@gluon.jit
def _bring_keys(segment, ring, bars, place, end, start, stop, config: gl.constexpr):
    """Tiles of keys and values as tiles start ... stop - 1 of the ring, the first up to `end`, each before the last."""
    size: gl.constexpr = segment.k.block_type.nbytes + segment.v.block_type.nbytes
    for n in range(0, stop - start):
        i = start + n
        at = [place.batch, place.key_head, end - (n + 1) * TILE, 0]
        ready = full(bars, i, config)
        mbarrier.wait(empty(bars, i, config), phase(i, config.slots) ^ 1)
        mbarrier.expect(ready, size)
        tma.async_copy_global_to_shared(segment.k, at, ready, ring[0].index(slot(i, config.slots)))
        tma.async_copy_global_to_shared(segment.v, at, ready, ring[1].index(slot(i, config.slots)))


@gluon.jit
def _producer(brought, config: gl.constexpr):
    CONSUMERS: gl.constexpr = config.team.consumers
    segments, own, work, shape, ring, bars = brought
    SEGMENTS: gl.constexpr = config.segments
    done = 0
    for turn in range(turns_of(work)):
        place = query_place(turn, work, shape, 0, config)
        for c in gl.static_range(CONSUMERS):
            _bring_own(own, bars, query_place(turn, work, shape, c, config), turn, c, config)
        for s in gl.static_range(SEGMENTS):
            low, high = _span(segments[s], place.row, place, shape.queries, s, config)
            count = gl.cdiv(high - low, TILE)
            _bring_keys(segments[s], ring, bars, place, high, done, done + count, config)
            done += count


@gluon.jit
def _add_keys(
    dq, q, grad_out, lse, delta, scale, reach, ring, bars, start, stop, column,
    consumer: gl.constexpr, keys: gl.constexpr, config: gl.constexpr,
):  # fmt: skip
    """(dQ, unscaled, plus what tiles start ... stop - 1 of the ring give, or those of them whose turn it is, q, dO).

    The first begins at key `column`, and `keys` keys of a tile are looked at. Q and dO come and go as words, see
    `renewed`.
    """
    STEP: gl.constexpr = config.step
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, keys, 16])
    lse, delta = gl.convert_layout(lse, scores), gl.convert_layout(delta, scores)
    operand: gl.constexpr = gl.DotOperandLayout(0, dq.type.layout, 2)
    own: gl.constexpr = gl.DotOperandLayout(0, scores, 2)
    skipped, turns = own_turns(start, stop, consumer, config)
    for turn in range(0, turns):
        n = skipped + turn * STEP
        i = start + n
        mbarrier.wait(full(bars, i, config), phase(i, config.slots))
        k = first_rows(tile_of(ring[0], i, config.slots), keys)
        v = first_rows(tile_of(ring[1], i, config.slots), keys)
        q, grad_out = renewed(q), renewed(grad_out)
        s = times_transposed(operand_of(q, k.dtype, own), k, scores)
        dp = times_transposed(operand_of(grad_out, v.dtype, own), v, scores)
        s = warpgroup_mma_wait(1, deps=(s,))
        p = seen(gl.exp2(s * scale - lse), reach, column - n * TILE, 0.0)
        dp = warpgroup_mma_wait(0, deps=(dp,))
        ds = (p * (dp - delta)).to(k.dtype)
        dq = warpgroup_mma(gl.convert_layout(ds, operand), k, dq, is_async=True)
        dq = warpgroup_mma_wait(0, deps=(dq,))
        mbarrier.arrive(empty(bars, i, config), count=1)
    return dq, q, grad_out


@gluon.jit
def _bits(x):
    return x.to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF


@gluon.jit
def _three_parts(x):
    """x as a sum of three bfloat16 numbers, each as the low half of a word."""
    high, middle, low = in_three(x)
    return _bits(high), _bits(middle), _bits(low)


@gluon.jit
def store_auxiliary(aux, lse, delta, place, shape):
    """The tile's auxiliary rows, as words of two numbers: three parts of lse, three of delta, zeros."""
    WORDS: gl.constexpr = AUX // 2
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WORDS, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    a0, a1, a2 = _three_parts(gl.convert_layout(lse, by_row))
    b0, b1, b2 = _three_parts(gl.convert_layout(delta, by_row))
    column = gl.expand_dims(gl.arange(0, WORDS, gl.SliceLayout(0, layout)), 0)
    words = gl.where(column == 0, gl.expand_dims(a0 | (a1 << 16), 1), 0)
    words = gl.where(column == 1, gl.expand_dims(a2 | (b0 << 16), 1), words)
    words = gl.where(column == 2, gl.expand_dims(b1 | (b2 << 16), 1), words)
    row = gl.expand_dims(place.row + gl.arange(0, TILE, by_row), 1)
    first = (place.batch * shape.heads.value + place.head).to(gl.int64) * shape.queries
    gl.store(aux + (first + row) * WORDS + column, words, mask=(row < shape.queries) & (column < WORDS))


@gluon.jit
def row_values(values, place, queries, layout: gl.constexpr):
    """One number a row of the tile; rows beyond the last do as the last."""
    rows = gl.minimum(place.row + gl.arange(0, TILE, layout), queries - 1)
    head = values.pointer + place.batch.to(gl.int64) * values.batch + place.head.to(gl.int64) * values.head
    return gl.load(head + rows)


@gluon.jit
def _interval(segment, team_row, place, queries, s: gl.constexpr, config: gl.constexpr):
    """(what the team sees, what these rows see) of segment s, on its way from memory."""
    KEYS: gl.constexpr = TILE if s == 0 else config.second_rows
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    return _span(segment, team_row, place, queries, s, config), reach_of(segment.edges, place, queries, layout)


@gluon.jit
def _way(span, reach):
    """(a team's tiles, first and last + 1 of those that these rows see), counted back from the end of its span."""
    count = gl.cdiv(span[1] - span[0], TILE)
    first = gl.minimum((span[1] - reach.last_end) // TILE, count)
    return count, first, gl.maximum(gl.cdiv(span[1] - reach.first_begin, TILE), first)


@gluon.jit
def _consumer(given, config: gl.constexpr, consumer: gl.constexpr):
    CONSUMERS: gl.constexpr = config.team.consumers
    IN_TURN: gl.constexpr = config.in_turn
    segments, own, lse_rows, grad_lse_rows, scale, results, work, shape, ring, bars = given
    dq_descriptor, dq_tiles, aux = results
    SEGMENTS: gl.constexpr = config.segments
    q_tiles, grad_tiles, out_tiles = own
    WIDTH: gl.constexpr = q_tiles.shape[4]
    SCARCE: gl.constexpr = config.team.by_heads and WIDTH > TILE
    EARLY: gl.constexpr = (
        SEGMENTS == 2 and segments[0].edges.begin is None and not SCARCE
    )  # two tables at once take too many registers
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, scores, 2)
    by_row: gl.constexpr = gl.SliceLayout(1, scores)
    done, turns = 0, turns_of(work)
    place = query_place(0, work, shape, consumer, config)
    next_lse = row_values(lse_rows, place, shape.queries, by_row)
    for turn in range(turns):
        team_row = team_row_of(place, consumer, config)
        lse = next_lse
        one = _interval(segments[0], team_row, place, shape.queries, 0, config)
        two = one
        if EARLY:
            two = _interval(segments[1], team_row, place, shape.queries, 1, config)
        mbarrier.wait(own_full(bars, consumer, config), turn & 1)
        grad_out = tile_of(grad_tiles, consumer, CONSUMERS).load(operand)
        out = tile_of(out_tiles, consumer, CONSUMERS).load(operand)
        delta = gl.convert_layout(gl.sum(grad_out.to(gl.float32) * out.to(gl.float32), 1), by_row)
        q, grad_out = words_of(tile_of(q_tiles, consumer, CONSUMERS).load(operand)), words_of(grad_out)
        mbarrier.arrive(own_empty(bars, consumer, config), count=1)
        if grad_lse_rows.pointer is not None:
            delta -= row_values(grad_lse_rows, place, shape.queries, by_row)
        delta = gl.where(lse == float("-inf"), 0.0, delta)
        lse = gl.where(lse == float("-inf"), ABSENT, lse)
        if consumer == 0 or not IN_TURN:
            store_auxiliary(aux, lse / scale, delta, place, shape)
        lse, delta = gl.expand_dims(lse * LOG2E, 1), gl.expand_dims(delta, 1)
        then = query_place(gl.minimum(turn + 1, turns - 1), work, shape, consumer, config)
        next_lse = row_values(lse_rows, then, shape.queries, by_row)  # on its way while this item is worked on
        dq = gl.zeros((TILE, WIDTH), gl.float32, wide)
        for s in gl.static_range(SEGMENTS):
            if s == 1 and not EARLY:
                place = query_place(opaque(turn), work, shape, consumer, config)
                two = _interval(segments[1], team_row_of(place, consumer, config), place, shape.queries, 1, config)
            span, reach = (one, two)[s]
            count, first, last = _way(span, reach)
            if not IN_TURN:
                pass_over(bars, done, done + first, config)
            dq, q, grad_out = _add_keys(
                dq, q, grad_out, lse, delta, scale * LOG2E, reach, ring, bars,
                done + first, done + last, span[1] - (first + 1) * TILE,
                consumer, (TILE, config.second_rows)[s], config,
            )  # fmt: skip
            if not IN_TURN:
                pass_over(bars, done + last, done + count, config)
            done += count
        tma.store_wait(0)
        tile_of(dq_tiles, consumer, CONSUMERS).store((dq * scale).to(dq_tiles.dtype))
        fence_async_shared()
        to = result_of(place, consumer, config)
        tma.async_copy_shared_to_global(dq_descriptor, [to.batch, to.head, to.row, 0], dq_tiles.index(consumer))
        place = then
    settle()


STRIDES = ("lse_batch", "lse_head", "grad_lse_batch", "grad_lse_head")


@gluon.jit(do_not_specialize=[*NUMBERS, *HEADS, *STRIDES, "queries"])
def queries_kernel(
    q, grad_out, out, dq, aux, k, v, start, stop, shift, breadth, columns, apart, k2, v2, start2, stop2,
    lse, lse_batch, lse_head, grad_lse, grad_lse_batch, grad_lse_head,
    scale, heads, heads_reciprocal, repeats, repeats_reciprocal, queries,
    items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal,
    config: gl.constexpr,
):  # fmt: skip
    """Gradients of queries and their auxiliary rows, over one segment or two."""
    CONSUMERS: gl.constexpr = config.team.consumers
    own = (buffers(q, CONSUMERS), buffers(grad_out, CONSUMERS), buffers(out, CONSUMERS))
    SLOTS: gl.constexpr = config.slots
    ring = (buffers(k, SLOTS), buffers(v, SLOTS))
    bars = barriers_of(config)
    edges = Edges(start, stop, shift, breadth, columns, apart)
    segments = (Run(k, v, edges),)
    if k2 is not None:
        segments = (Run(k, v, edges), Run(k2, v2, Edges(start2, stop2, 0, 0, 0, apart)))
    work = work_given(
        items, blocks, section, section_reciprocal, last, last_reciprocal, stretch, stretch_reciprocal
    )  # fmt: skip
    shape = Shape(Divisor(heads, heads_reciprocal), Divisor(repeats, repeats_reciprocal), queries)
    lse, grad_lse = Rows(lse, lse_batch, lse_head), Rows(grad_lse, grad_lse_batch, grad_lse_head)
    results = (dq, buffers(dq, CONSUMERS), aux)
    given = (segments, own, lse, grad_lse, scale, results, work, shape, ring, bars)
    brought = (segments, ((q, grad_out, out), own), work, shape, ring, bars)
    as_a_team(_consumer, given, _producer, brought, config)
