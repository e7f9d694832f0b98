"""Forward of a band whose ring of keys and values fits in shared memory: every tile is loaded once.

A program walks a run of consecutive query tiles. One warp brings each key and value tile into a ring; two warpgroups
take alternate query tiles and read the last `halo + 1` tiles from it. The newest (diagonal) and the oldest (tail) of
these are both partly visible, and their visible parts never overlap: they share one softmax tile, so that a window of
256 keys costs four tiles of exponentials, not five.
"""

from __future__ import annotations

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

from .bands import NUMBERS, Band, Rows, nowhere, of_queries, rows
from .configs import PAIR_REGISTERS, PAIR_WARPS, ROWS, forward_config
from .descriptors import tiles as tiles_of
from .launch import Launch, Operands, Repeated, launch
from .operands import Diagonal, Inputs
from .ring import (
    LN2,
    LOG2E,
    LOWEST,
    TILE,
    after,
    barriers,
    first_query_tile,
    mask_of,
    move_to,
    opaque,
    phase,
    release,
    rows_at,
    run_of,
    settle,
    slot,
    split,
    thread_sum,
    tile_of,
    times_transposed,
    triangle,
    where_seen,
)


def fits(width: int, head_width: int, value_width: int) -> bool:
    """Whether a ring in shared memory holds such a band."""
    return forward_config(width, head_width, value_width) is not None


def forward(
    inputs: Inputs, out: Tensor, lse: Tensor | None, sinks: Tensor | None, *, diagonal: Diagonal, scale: float
) -> None:
    """Writes `out` and the natural `lse`, if it is given, of queries that see a diagonal's keys."""
    launch(_prepared, (*inputs, out, lse, sinks), diagonal, scale)


def repeated(diagonal: Diagonal, scale: float) -> Repeated:
    """What `forward` launches of (q, k, v, out, lse, sinks), for tensors that lie alike each time."""
    return Repeated(_prepared, diagonal, scale)


def _prepared(operands: Operands, diagonal: Diagonal, scale: float) -> Launch:
    q, k, v, out, lse, sinks = operands
    config = forward_config(diagonal.width, q.shape[3], v.shape[3])
    band = of_queries(q, k, *diagonal)
    widths = (config.width, config.width, config.value_width, config.value_width)
    described = (tiles_of(x, ROWS, columns) for x, columns in zip((q, k, v, out), widths, strict=True))
    written = (*nowhere(out), 0) if lse is None else (*rows(lse), band.queries)
    return Launch(_forward, band.total, (*described, *written, sinks, *band, scale), (config,))


@gluon.jit
def _producer(q_desc, k_desc, v_desc, buffers, signals, band, config: gl.constexpr):
    run = run_of(band.total)
    q_s, k_s, v_s, _ = buffers
    q_full, q_empty, full, empty, _ = signals
    SLOTS: gl.constexpr = config.slots
    BUFFERS: gl.constexpr = config.query_buffers
    at = first_query_tile(run, band, config.halo)
    loaded = gl.to_tensor(0)
    for t in range(0, run.stop - run.start):
        if t >= BUFFERS:
            mbarrier.wait(q_empty.index((t - BUFFERS) & 1), ((t - BUFFERS) >> 1) & 1)
        mbarrier.expect(q_full.index(t & 1), q_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            q_desc, [at.batch, at.head, at.tile * TILE, 0], q_full.index(t & 1), q_s.index(slot(t, BUFFERS))
        )
        for n in range(0, at.ring + 1 - loaded):
            x = loaded + n
            row = (at.tile - at.ring + x) * TILE + band.shift
            mbarrier.wait(empty.index(slot(x, SLOTS)), phase(x, SLOTS) ^ 1)
            ready = full.index(slot(x, SLOTS))
            mbarrier.expect(ready, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(k_desc, [at.batch, at.head, row, 0], ready, k_s.index(slot(x, SLOTS)))
            tma.async_copy_global_to_shared(v_desc, [at.batch, at.head, row, 0], ready, v_s.index(slot(x, SLOTS)))
        loaded = at.ring + 1
        at = after(at, band, 1)


@gluon.jit
def _scores(q, k_s, i, config: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    return times_transposed(q, tile_of(k_s, i, config.slots), layout)


@gluon.jit
def _add_values(p, v_s, i, acc, use_acc: gl.constexpr, config: gl.constexpr):
    VALUE: gl.constexpr = config.value_width
    layout: gl.constexpr = gl.DotOperandLayout(0, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE, 16]), 2)
    p = gl.convert_layout(p.to(v_s.dtype), layout)
    return warpgroup_mma(p, tile_of(v_s, i, config.slots), acc, use_acc=use_acc, is_async=True)


@gluon.jit
def _rescale(acc, sums, highest, new_highest):
    """The accumulator and the sums, brought from one maximum to a new one."""
    factor = gl.exp2(highest - new_highest)
    acc_factor = gl.convert_layout(factor, gl.SliceLayout(1, acc.type.layout))
    sums_factor = gl.convert_layout(factor, gl.SliceLayout(1, sums.type.layout))
    return acc * gl.expand_dims(acc_factor, 1), sums * gl.expand_dims(sums_factor, 1)


@gluon.jit
def _whole(q, k_s, v_s, empty, i, masks, scale, config: gl.constexpr):
    """(row maxima, sums held by threads, accumulator) of a query tile all of whose keys exist."""
    VALUE: gl.constexpr = config.value_width
    HALO: gl.constexpr = config.halo
    PAIRS: gl.constexpr = (HALO - 1) // 2
    SINGLE: gl.constexpr = HALO % 2 == 0  # a tile that joins the shared one, so that pairs are left
    AHEAD: gl.constexpr = 2 if config.prefetch and PAIRS > 0 else 0
    row, column, rest, lower = masks
    low = row >= column
    diagonal = _scores(q, k_s, i, config)
    tail = _scores(q, k_s, i - HALO, config)
    if SINGLE:
        single = _scores(q, k_s, i - HALO + 1, config)
    if AHEAD > 0:
        s0 = _scores(q, k_s, i - 2 * PAIRS, config)
        s1 = _scores(q, k_s, i - 2 * PAIRS + 1, config)
    if SINGLE:
        diagonal, tail, single = warpgroup_mma_wait(AHEAD, deps=(diagonal, tail, single))
    else:
        diagonal, tail = warpgroup_mma_wait(AHEAD, deps=(diagonal, tail))
    if not config.exact:
        tail = gl.where(row - rest < column, tail, float("-inf"))
        if HALO == 1:
            diagonal = gl.where(row - rest - TILE < column, diagonal, float("-inf"))
        if SINGLE:
            single = gl.where(row - rest - TILE < column, single, float("-inf"))
    shared = gl.where(low, diagonal, tail)
    highest = gl.max(gl.maximum(shared, single) if SINGLE else shared, 1) * scale
    p = gl.exp2(shared * scale - gl.expand_dims(highest, 1))
    sums = thread_sum(p)
    near, far = split(p, lower, v_s.dtype)
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE, 16])
    acc = _add_values(near, v_s, i, gl.zeros((TILE, VALUE), gl.float32, layout), False, config)
    acc = _add_values(far, v_s, i - HALO, acc, True, config)
    if SINGLE:
        p = gl.exp2(single * scale - gl.expand_dims(highest, 1))
        sums += thread_sum(p)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index(slot(i - HALO, config.slots)), count=1)
        acc = _add_values(p, v_s, i - HALO + 1, acc, True, config)
    for pair in gl.static_range(PAIRS):
        x = i - 2 * (PAIRS - pair)
        if AHEAD == 0:
            s0 = _scores(q, k_s, x, config)
            s1 = _scores(q, k_s, x + 1, config)
        s0, s1, acc = warpgroup_mma_wait(0, deps=(s0, s1, acc))
        now0, now1 = s0, s1
        if AHEAD > 0 and pair + 1 < PAIRS:
            s0 = _scores(q, k_s, x + 2, config)
            s1 = _scores(q, k_s, x + 3, config)
        if pair == 0 and not SINGLE:
            mbarrier.arrive(empty.index(slot(i - HALO, config.slots)), count=1)
            if not config.exact:
                now0 = gl.where(row - rest - TILE < column, now0, float("-inf"))
        new_highest = gl.maximum(highest, gl.max(gl.maximum(now0, now1), 1) * scale)
        acc, sums = _rescale(acc, sums, highest, new_highest)
        highest = new_highest
        p = gl.exp2(now0 * scale - gl.expand_dims(highest, 1))
        sums += thread_sum(p)
        acc = _add_values(p, v_s, x, acc, True, config)
        p = gl.exp2(now1 * scale - gl.expand_dims(highest, 1))
        sums += thread_sum(p)
        acc = _add_values(p, v_s, x + 1, acc, True, config)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    if HALO == 1:
        mbarrier.arrive(empty.index(slot(i - HALO, config.slots)), count=1)
    return highest, sums, acc


@gluon.jit
def _broken(q, k_s, v_s, i, tile, band, masks, scale, config: gl.constexpr):
    """The same for a query tile some of whose keys lie before the first or after the last."""
    VALUE: gl.constexpr = config.value_width
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE, 16])
    highest = gl.full((TILE,), LOWEST, gl.float32, gl.SliceLayout(1, scores_layout))
    sums = thread_sum(gl.zeros((TILE, TILE), gl.float32, scores_layout))
    acc = gl.zeros((TILE, VALUE), gl.float32, layout)
    # hidden: few tiles come here, and what follows from these alone would take registers from all
    diagonal, width = opaque(tile * TILE + band.shift), opaque(band.width)
    first = gl.maximum((diagonal - band.keys + TILE) // TILE, 0)
    for u in range(first, gl.minimum((diagonal + TILE - 1) // TILE, config.halo) + 1):
        s = _scores(q, k_s, i - u, config)
        s = warpgroup_mma_wait(0, deps=(s,))
        s = where_seen(s, masks, u, diagonal - u * TILE, width, band.keys)
        new_highest = gl.maximum(highest, gl.max(s, 1) * scale)
        acc, sums = _rescale(acc, sums, highest, new_highest)
        highest = new_highest
        p = gl.exp2(s * scale - gl.expand_dims(highest, 1))
        sums += thread_sum(p)
        acc = _add_values(p, v_s, i - u, acc, True, config)
        acc = warpgroup_mma_wait(0, deps=(acc,))
    return highest, sums, acc


@gluon.jit
def _with_sink(highest, total, sinks, head):
    """(new maxima, new sums, factor of the accumulator) with the head's sink in the denominator."""
    sink = gl.load(sinks + head).to(gl.float32) * LOG2E
    new_highest = gl.maximum(highest, sink)
    factor = gl.exp2(highest - new_highest)
    return new_highest, total * factor + gl.exp2(sink - new_highest), factor


@gluon.jit
def _consumer(o_desc, lse, written, sinks, buffers, signals, band, scale, config: gl.constexpr, own: gl.constexpr):
    run = run_of(band.total)
    q_s, k_s, v_s, o_s = buffers
    q_full, q_empty, full, empty, o_free = signals
    HALO: gl.constexpr = config.halo
    WIDTH: gl.constexpr = config.width
    VALUE: gl.constexpr = config.value_width
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    rows = gl.arange(0, TILE, gl.SliceLayout(1, scores_layout))
    columns = gl.arange(0, TILE, gl.SliceLayout(0, scores_layout))
    row, column = triangle(rows, columns, 0)
    lower = mask_of(row >= column)
    rest = band.width - HALO * TILE
    at = after(first_query_tile(run, band, HALO), band, own)
    seen = gl.to_tensor(0)
    for t in range(own, run.stop - run.start, 2):
        i = at.ring
        mbarrier.wait(q_full.index(own), (t >> 1) & 1)
        q = q_s.index(slot(t, config.query_buffers)).reshape((TILE, WIDTH))
        q = q.load(gl.DotOperandLayout(0, scores_layout, 2))
        mbarrier.arrive(q_empty.index(own), count=1)
        move_to(full, empty, seen, i - HALO, i + 1, config.slots)
        seen = i + 1
        row, column = triangle(rows, columns, t)
        if WIDTH > 64 or VALUE > 64:  # wide tiles leave no registers to keep it in
            lower = mask_of(row >= column)
        masks = (row, column, rest, lower)
        start = (at.tile - HALO) * TILE + band.shift
        if (start >= 0) & (gl.minimum((at.tile + 1) * TILE, band.queries) + band.shift <= band.keys):
            highest, sums, acc = _whole(q, k_s, v_s, empty, i, masks, scale, config)
        else:
            highest, sums, acc = _broken(q, k_s, v_s, i, at.tile, band, masks, scale, config)
            release(empty, gl.maximum(i - HALO, 0), i - HALO + 1, config.slots)
        then = after(at, band, 2)
        release(empty, gl.maximum(i - HALO + 1, 0), gl.minimum(then.ring - HALO, seen), config.slots)
        total = gl.convert_layout(gl.sum(sums, 1), gl.SliceLayout(1, scores_layout))
        if sinks is not None:
            highest, total, factor = _with_sink(highest, total, sinks, at.head)
        else:
            factor = 1.0
        factor = gl.where(total > 0, factor / total, 0.0)
        acc *= gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, acc.type.layout)), 1)
        if config.out_buffers == 2:
            tma.store_wait(0)
            o = o_s.index(own)
        else:
            mbarrier.wait(o_free.index(0), (t & 1) ^ 1)
            o = o_s.index(0)
        o.reshape((TILE, VALUE)).store(acc.to(o_s.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(o_desc, [at.batch, at.head, at.tile * TILE, 0], o)
        query = at.tile * TILE + rows
        gl.store(rows_at(lse, at) + query, (highest + gl.log2(total)) * LN2, mask=query < written)
        if config.out_buffers == 1:
            tma.store_wait(0)
            mbarrier.arrive(o_free.index(0), count=1)
        at = then
    settle()


@gluon.jit(do_not_specialize=[*NUMBERS, "lse", "lse_batch", "lse_head", "written", "sinks"])
def _forward(
    q_desc,
    k_desc,
    v_desc,
    o_desc,
    lse,
    lse_batch,
    lse_head,
    written,  # queries whose log-sum-exp is wanted: all or none
    sinks,
    shift,
    width,
    queries,
    keys,
    heads,
    tiles,
    extra,
    total,
    scale,
    config: gl.constexpr,
):
    band = Band(shift, width, queries, keys, heads, tiles, extra, total)
    lse = Rows(lse, lse_batch, lse_head)
    WIDTH: gl.constexpr = config.width
    VALUE: gl.constexpr = config.value_width
    q_s = gl.allocate_shared_memory(q_desc.dtype, [config.query_buffers, 1, 1, TILE, WIDTH], q_desc.layout)
    o_s = gl.allocate_shared_memory(o_desc.dtype, [config.out_buffers, 1, 1, TILE, VALUE], o_desc.layout)
    k_s = gl.allocate_shared_memory(k_desc.dtype, [config.slots, 1, 1, TILE, WIDTH], k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [config.slots, 1, 1, TILE, VALUE], v_desc.layout)
    buffers = (q_s, k_s, v_s, o_s)
    # queries have two barriers even in one buffer: shared by two consumers, a barrier's parity would be ambiguous
    signals = (barriers(2, 1), barriers(2, 1), barriers(config.slots, 1), barriers(config.slots, 2), barriers(1, 1))
    scale *= LOG2E
    gl.warp_specialize(
        [
            (_consumer, (o_desc, lse, written, sinks, buffers, signals, band, scale, config, 0)),
            (_consumer, (o_desc, lse, written, sinks, buffers, signals, band, scale, config, 1)),
            (_producer, (q_desc, k_desc, v_desc, buffers, signals, band, config)),
        ],
        PAIR_WARPS,
        PAIR_REGISTERS,
    )
