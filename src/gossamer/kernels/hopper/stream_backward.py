"""Backward of a band whose ring fits in shared memory: two kernels, no atomics, so that every run gives the same bits.

The gradient of queries walks like the forward over a ring of keys and values. It also forms delta = rowsum(dO * O) and
writes, for each query, an auxiliary row of 16 bfloat16: the log-sum-exp in units of unscaled scores as three parts,
delta as three, and zeros. The gradient of keys is the mirror image: it owns key tiles, and queries, dO and auxiliary
rows pass through the ring. There scores stand transposed, S^T = K Q^T, so that P^T and dS^T are operands in registers;
log-sum-exp and delta then vary along a thread's columns, and one matrix step more with the auxiliary rows subtracts
them in the accumulator.
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

from .bands import NUMBERS, Band, Rows, of_keys, of_queries, rows, words
from .configs import KEY_BUFFERS, PAIR_REGISTERS, PAIR_WARPS, ROWS, gradient_config
from .descriptors import tiles as tiles_of
from .launch import Launch, Operands, launch
from .operands import Diagonal, Inputs, Results
from .ring import (
    AUX,
    LOG2E,
    TILE,
    after,
    barriers,
    first_query_tile,
    in_three,
    mask_of,
    move_to,
    opaque,
    phase,
    place_of,
    release,
    rows_at,
    run_of,
    settle,
    slot,
    split,
    tile_of,
    times_transposed,
    triangle,
    where_seen,
)

WIDTH = gl.constexpr(64)
"""Columns of every tile here; narrower heads are filled up with zeros."""

SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
OPERAND = gl.constexpr(gl.DotOperandLayout(0, SCORES.value, 2))


def fits(width: int, head_width: int, value_width: int) -> bool:
    """Whether rings in shared memory hold such a band."""
    narrow = max(head_width, value_width) <= WIDTH.value
    return narrow and gradient_config(width) is not None


def backward_queries(
    inputs: Inputs, results: Results, dq: Tensor, aux: Tensor, *, diagonal: Diagonal, scale: float
) -> None:
    """Writes `dq`, and in `aux` [B, H, Q, 16] what `backward_keys` needs of the log-sum-exp and of delta."""
    given = results.out, results.grad_out, dq, results.lse, results.grad_lse, aux
    launch(_prepared_queries, (*inputs, *given), diagonal, scale)


def _prepared_queries(operands: Operands, diagonal: Diagonal, scale: float) -> Launch:
    *tiled, lse, grad_lse, aux = operands
    band = of_queries(*tiled[:2], *diagonal)
    described = (tiles_of(x, ROWS, WIDTH.value) for x in tiled)
    given = (*rows(lse), *rows(grad_lse), *words(aux))
    config = gradient_config(diagonal.width)
    return Launch(_queries_kernel, band.total, (*described, *given, *band, scale), (config,))


def backward_keys(
    inputs: Inputs, grad_out: Tensor, aux: Tensor, dk: Tensor, dv: Tensor, *, diagonal: Diagonal, scale: float
) -> None:
    """Writes `dk` and `dv`, from the `aux` that `backward_queries` wrote."""
    launch(_prepared_keys, (*inputs, grad_out, aux, dk, dv), diagonal, scale)


def _prepared_keys(operands: Operands, diagonal: Diagonal, scale: float) -> Launch:
    band = of_keys(*operands[:2], *diagonal)
    columns = (WIDTH.value,) * 4 + (AUX.value,) + (WIDTH.value,) * 2
    described = (tiles_of(x, ROWS, width) for x, width in zip(operands, columns, strict=True))
    return Launch(_keys_kernel, band.total, (*described, *band, scale), (gradient_config(diagonal.width),))


@gluon.jit
def _queries_producer(descs, buffers, signals, band, config: gl.constexpr):
    run = run_of(band.total)
    q_desc, k_desc, v_desc, o_desc, do_desc, _ = descs
    q_s, do_s, o_s, k_s, v_s, _ = buffers
    q_full, q_empty, full, empty = signals
    SLOTS: gl.constexpr = config.slots
    at = first_query_tile(run, band, config.halo)
    loaded = gl.to_tensor(0)
    for t in range(0, run.stop - run.start):
        row = at.tile * TILE
        mbarrier.wait(q_empty.index(t & 1), ((t >> 1) & 1) ^ 1)
        ready = q_full.index(t & 1)
        mbarrier.expect(ready, q_desc.block_type.nbytes + o_desc.block_type.nbytes + do_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [at.batch, at.head, row, 0], ready, q_s.index(t & 1))
        tma.async_copy_global_to_shared(do_desc, [at.batch, at.head, row, 0], ready, do_s.index(t & 1))
        tma.async_copy_global_to_shared(o_desc, [at.batch, at.head, row, 0], ready, o_s.index(t & 1))
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
def _add_product(a, ring, i, acc, use_acc: gl.constexpr, config: gl.constexpr):
    """acc + a @ (tile i of the ring), begun; a [64, 64] as the scores lie."""
    a = gl.convert_layout(a.to(ring.dtype), OPERAND)
    return warpgroup_mma(a, tile_of(ring, i, config.slots), acc, use_acc=use_acc, is_async=True)


@gluon.jit
def _whole_queries(q, do, k_s, v_s, empty, i, masks, statistics, config: gl.constexpr):
    """dQ (without its scale) of a query tile all of whose keys exist."""
    HALO: gl.constexpr = config.halo
    SLOTS: gl.constexpr = config.slots
    row, column, rest, lower = masks
    lse, delta, scale = statistics
    low = row >= column
    diagonal = times_transposed(q, tile_of(k_s, i, SLOTS), SCORES)
    tail = times_transposed(q, tile_of(k_s, i - HALO, SLOTS), SCORES)
    diagonal, tail = warpgroup_mma_wait(0, deps=(diagonal, tail))
    if not config.exact:
        tail = gl.where(row - rest < column, tail, float("-inf"))
        if HALO == 1:
            diagonal = gl.where(row - rest - TILE < column, diagonal, float("-inf"))
    s = gl.where(low, diagonal, tail)
    diagonal = times_transposed(do, tile_of(v_s, i, SLOTS), SCORES)
    tail = times_transposed(do, tile_of(v_s, i - HALO, SLOTS), SCORES)
    p = gl.exp2(s * scale - lse)
    diagonal, tail = warpgroup_mma_wait(0, deps=(diagonal, tail))
    near, far = split(p * (gl.where(low, diagonal, tail) - delta), lower, k_s.dtype)
    dq = _add_product(near, k_s, i, gl.zeros((TILE, WIDTH), gl.float32, SCORES), False, config)
    dq = _add_product(far, k_s, i - HALO, dq, True, config)
    for u in gl.static_range(1, HALO):
        s = times_transposed(q, tile_of(k_s, i - HALO + u, SLOTS), SCORES)
        dp = times_transposed(do, tile_of(v_s, i - HALO + u, SLOTS), SCORES)
        s = warpgroup_mma_wait(1, deps=(s,))
        if not config.exact and u == 1:
            s = gl.where(row - rest - TILE < column, s, float("-inf"))
        p = gl.exp2(s * scale - lse)
        dp, dq = warpgroup_mma_wait(0, deps=(dp, dq))
        if u == 1:
            mbarrier.arrive(empty.index(slot(i - HALO, SLOTS)), count=1)
        dq = _add_product(p * (dp - delta), k_s, i - HALO + u, dq, True, config)
    dq = warpgroup_mma_wait(0, deps=(dq,))
    if HALO == 1:
        mbarrier.arrive(empty.index(slot(i - HALO, SLOTS)), count=1)
    return dq


@gluon.jit
def _broken_queries(q, do, k_s, v_s, i, tile, band, masks, statistics, config: gl.constexpr):
    """The same for a query tile some of whose keys lie before the first or after the last."""
    SLOTS: gl.constexpr = config.slots
    lse, delta, scale = statistics
    dq = gl.zeros((TILE, WIDTH), gl.float32, SCORES)
    # hidden: few tiles come here, and what follows from these alone would take registers from all
    diagonal, width = opaque(tile * TILE + band.shift), opaque(band.width)
    first = gl.maximum((diagonal - band.keys + TILE) // TILE, 0)
    for u in range(first, gl.minimum((diagonal + TILE - 1) // TILE, config.halo) + 1):
        s = times_transposed(q, tile_of(k_s, i - u, SLOTS), SCORES)
        dp = times_transposed(do, tile_of(v_s, i - u, SLOTS), SCORES)
        s, dp = warpgroup_mma_wait(0, deps=(s, dp))
        s = where_seen(s, masks, u, diagonal - u * TILE, width, band.keys)
        dq = _add_product(gl.exp2(s * scale - lse) * (dp - delta), k_s, i - u, dq, True, config)
        dq = warpgroup_mma_wait(0, deps=(dq,))
    return dq


@gluon.jit
def _word(low, high):
    """Two bfloat16 as one int32."""
    low = low.to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
    return gl.expand_dims(low | (high.to(gl.int16, bitcast=True).to(gl.int32) << 16), 1)


@gluon.jit
def _store_aux(aux, query, queries, lse, delta):
    """A row of 16 bfloat16 each: three parts of lse, three of delta, zeros. A thread stores two of eight words."""
    words: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    a0, a1, a2 = in_three(gl.convert_layout(lse, gl.SliceLayout(1, words)))
    b0, b1, b2 = in_three(gl.convert_layout(delta, gl.SliceLayout(1, words)))
    word = gl.expand_dims(gl.arange(0, 8, gl.SliceLayout(0, words)), 0)
    value = gl.where(word == 2, _word(b1, b2), 0)
    value = gl.where(word == 1, _word(a2, b0), value)
    value = gl.where(word == 0, _word(a0, a1), value)
    query = gl.expand_dims(gl.convert_layout(query, gl.SliceLayout(1, words)), 1)
    gl.store(aux + query * 8 + word, value, mask=(query < queries) & (word < 8))


@gluon.jit
def _lse_at(lse, place, rows, band, exists):
    """The log-sum-exp of the place's queries; zeros where it does not exist, or they do not."""
    query = place.tile * TILE + rows
    return gl.load(rows_at(lse, place) + query, mask=(query < band.queries) & exists, other=0.0)


@gluon.jit
def _queries_consumer(dq_desc, given, buffers, signals, band, scale, config: gl.constexpr, own: gl.constexpr):
    run = run_of(band.total)
    q_s, do_s, o_s, k_s, v_s, dq_s = buffers
    q_full, q_empty, full, empty = signals
    lse_rows, grad_lse_rows, aux_rows = given
    HALO: gl.constexpr = config.halo
    rows = gl.arange(0, TILE, gl.SliceLayout(1, SCORES))
    columns = gl.arange(0, TILE, gl.SliceLayout(0, SCORES))
    row, column = triangle(rows, columns, 0)
    lower = mask_of(row >= column)
    rest = band.width - HALO * TILE
    at = after(first_query_tile(run, band, HALO), band, own)
    seen = gl.to_tensor(0)
    count = run.stop - run.start
    next_lse = _lse_at(lse_rows, at, rows, band, own < count)
    for t in range(own, count, 2):
        i = at.ring
        then = after(at, band, 2)
        query = at.tile * TILE + rows
        lse = gl.where(next_lse == float("-inf"), 0.0, next_lse)
        mbarrier.wait(q_full.index(own), (t >> 1) & 1)
        q = q_s.index(own).reshape((TILE, WIDTH)).load(OPERAND)
        do = do_s.index(own).reshape((TILE, WIDTH)).load(OPERAND)
        o = o_s.index(own).reshape((TILE, WIDTH)).load(OPERAND)
        mbarrier.arrive(q_empty.index(own), count=1)
        delta = gl.convert_layout(gl.sum(do.to(gl.float32) * o.to(gl.float32), 1), gl.SliceLayout(1, SCORES))
        if grad_lse_rows.pointer is not None:
            delta -= gl.load(rows_at(grad_lse_rows, at) + query, mask=query < band.queries, other=0.0)
        move_to(full, empty, seen, i - HALO, i + 1, config.slots)
        seen = i + 1
        next_lse = _lse_at(lse_rows, then, rows, band, t + 2 < count)  # on its way while this tile is worked on
        row, column = triangle(rows, columns, t)
        masks = (row, column, rest, lower)
        statistics = (gl.expand_dims(lse * LOG2E, 1), gl.expand_dims(delta, 1), scale * LOG2E)
        start = (at.tile - HALO) * TILE + band.shift
        if (start >= 0) & (gl.minimum((at.tile + 1) * TILE, band.queries) + band.shift <= band.keys):
            dq = _whole_queries(q, do, k_s, v_s, empty, i, masks, statistics, config)
        else:
            dq = _broken_queries(q, do, k_s, v_s, i, at.tile, band, masks, statistics, config)
            release(empty, gl.maximum(i - HALO, 0), i - HALO + 1, config.slots)
        release(empty, gl.maximum(i - HALO + 1, 0), gl.minimum(then.ring - HALO, seen), config.slots)
        _store_aux(rows_at(aux_rows, at), query, band.queries, lse / scale, delta)
        tma.store_wait(0)
        dq_s.index(own).reshape((TILE, WIDTH)).store((dq * scale).to(dq_s.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dq_desc, [at.batch, at.head, at.tile * TILE, 0], dq_s.index(own))
        at = then
    settle()


@gluon.jit(
    do_not_specialize=[
        *NUMBERS,
        *("lse", "lse_batch", "lse_head", "grad_lse", "grad_lse_batch", "grad_lse_head", "aux_batch", "aux_head"),
    ]
)
def _queries_kernel(
    q_desc,
    k_desc,
    v_desc,
    o_desc,
    do_desc,
    dq_desc,
    lse,
    lse_batch,
    lse_head,
    grad_lse,
    grad_lse_batch,
    grad_lse_head,
    aux,
    aux_batch,
    aux_head,
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
    q_s = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, TILE, WIDTH], q_desc.layout)
    do_s = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, TILE, WIDTH], q_desc.layout)
    o_s = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, TILE, WIDTH], q_desc.layout)
    dq_s = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, TILE, WIDTH], q_desc.layout)
    k_s = gl.allocate_shared_memory(q_desc.dtype, [config.slots, 1, 1, TILE, WIDTH], q_desc.layout)
    v_s = gl.allocate_shared_memory(q_desc.dtype, [config.slots, 1, 1, TILE, WIDTH], q_desc.layout)
    descs = (q_desc, k_desc, v_desc, o_desc, do_desc, dq_desc)
    buffers = (q_s, do_s, o_s, k_s, v_s, dq_s)
    signals = (barriers(2, 1), barriers(2, 1), barriers(config.slots, 1), barriers(config.slots, 2))
    given = (
        Rows(lse, lse_batch, lse_head),
        Rows(grad_lse, grad_lse_batch, grad_lse_head),
        Rows(aux, aux_batch, aux_head),
    )
    gl.warp_specialize(
        [
            (_queries_consumer, (dq_desc, given, buffers, signals, band, scale, config, 0)),
            (_queries_consumer, (dq_desc, given, buffers, signals, band, scale, config, 1)),
            (_queries_producer, (descs, buffers, signals, band, config)),
        ],
        PAIR_WARPS,
        PAIR_REGISTERS,
    )


@gluon.jit
def _keys_producer(descs, buffers, signals, band, config: gl.constexpr):
    run = run_of(band.total)
    q_desc, k_desc, v_desc, do_desc, x_desc = descs
    q_s, do_s, x_s, k_s, v_s = buffers
    k_full, k_empty, full, empty = signals
    SLOTS: gl.constexpr = config.slots
    at = place_of(run.start, band, 0)
    loaded = gl.to_tensor(0)
    for t in range(0, run.stop - run.start):
        row = at.tile * TILE
        mbarrier.wait(k_empty.index(slot(t, KEY_BUFFERS)), phase(t, KEY_BUFFERS) ^ 1)
        ready = k_full.index(slot(t, KEY_BUFFERS))
        mbarrier.expect(ready, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [at.batch, at.head, row, 0], ready, k_s.index(slot(t, KEY_BUFFERS)))
        tma.async_copy_global_to_shared(v_desc, [at.batch, at.head, row, 0], ready, v_s.index(slot(t, KEY_BUFFERS)))
        for n in range(0, at.ring + config.halo + 1 - loaded):
            x = loaded + n
            row = (at.tile - at.ring + x) * TILE - band.shift
            mbarrier.wait(empty.index(slot(x, SLOTS)), phase(x, SLOTS) ^ 1)
            ready = full.index(slot(x, SLOTS))
            mbarrier.expect(ready, q_desc.block_type.nbytes + do_desc.block_type.nbytes + x_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [at.batch, at.head, row, 0], ready, q_s.index(slot(x, SLOTS)))
            tma.async_copy_global_to_shared(do_desc, [at.batch, at.head, row, 0], ready, do_s.index(slot(x, SLOTS)))
            tma.async_copy_global_to_shared(x_desc, [at.batch, at.head, row, 0], ready, x_s.index(slot(x, SLOTS)))
        loaded = at.ring + config.halo + 1
        at = after(at, band, 1)


@gluon.jit
def _less_aux(a, pick, ring, x_s, i, config: gl.constexpr):
    """a @ (tile i of the ring)^T, less in each column the parts of its auxiliary row that `pick` takes; begun."""
    acc = times_transposed(a, tile_of(ring, i, config.slots), SCORES)
    return warpgroup_mma(pick, tile_of(x_s, i, config.slots).permute((1, 0)), acc, is_async=True)


@gluon.jit
def _hand_back(k_empty, t):
    """Frees the buffers of this warpgroup's last key tile, once its gradients, which took their place, have left."""
    tma.store_wait(0)
    mbarrier.arrive(k_empty.index(slot(t - 2, KEY_BUFFERS)), count=1, pred=t >= 2)


@gluon.jit
def _one_key_tile(k, v, rings, signals, i, t, masks, picks, scale, config: gl.constexpr):
    """(dK without its scale, dV) of one key tile; queries i ... i + halo of the ring see it."""
    q_s, do_s, x_s = rings
    _, k_empty, _, empty = signals
    HALO: gl.constexpr = config.halo
    row, column, rest, lower = masks
    pick_lse, pick_delta = picks
    low = row <= column
    diagonal = _less_aux(k, pick_lse, q_s, x_s, i, config)
    tail = _less_aux(k, pick_lse, q_s, x_s, i + HALO, config)
    diagonal, tail = warpgroup_mma_wait(0, deps=(diagonal, tail))
    if not config.exact:
        tail = gl.where(row + rest > column, tail, float("-inf"))
        if HALO == 1:
            diagonal = gl.where(row + rest + TILE > column, diagonal, float("-inf"))
    s = gl.where(low, diagonal, tail)
    diagonal = _less_aux(v, pick_delta, do_s, x_s, i, config)
    tail = _less_aux(v, pick_delta, do_s, x_s, i + HALO, config)
    p = gl.exp2(s * scale)
    _hand_back(k_empty, t)
    near, far = split(p, lower, q_s.dtype)
    dv = _add_product(near, do_s, i, gl.zeros((TILE, WIDTH), gl.float32, SCORES), False, config)
    dv = _add_product(far, do_s, i + HALO, dv, True, config)
    diagonal, tail = warpgroup_mma_wait(2, deps=(diagonal, tail))
    near, far = split(p * gl.where(low, diagonal, tail), lower, q_s.dtype)
    if HALO > 1:
        s = _less_aux(k, pick_lse, q_s, x_s, i + 1, config)
    dk = _add_product(near, q_s, i, gl.zeros((TILE, WIDTH), gl.float32, SCORES), False, config)
    dk = _add_product(far, q_s, i + HALO, dk, True, config)
    if HALO > 1:
        dp = _less_aux(v, pick_delta, do_s, x_s, i + 1, config)
    for u in gl.static_range(1, HALO):
        # begun and not waited for, oldest first: scores (2 steps), dK (2 after the shared tile, else 1), dP (2)
        now = warpgroup_mma_wait(3 if u > 1 else 4, deps=(s,))
        if not config.exact and u == HALO - 1:
            now = gl.where(row + rest + TILE > column, now, float("-inf"))
        p = gl.exp2(now * scale)
        dv = _add_product(p, do_s, i + u, dv, True, config)
        now = warpgroup_mma_wait(1, deps=(dp,))
        ds = gl.convert_layout((p * now).to(q_s.dtype), OPERAND)
        if u + 1 < HALO:
            s = _less_aux(k, pick_lse, q_s, x_s, i + u + 1, config)
        if u == 1:
            mbarrier.arrive(empty.index(slot(i, config.slots)), count=1)
        dk = _add_product(ds, q_s, i + u, dk, True, config)
        if u + 1 < HALO:
            dp = _less_aux(v, pick_delta, do_s, x_s, i + u + 1, config)
    dk, dv = warpgroup_mma_wait(0, deps=(dk, dv))
    if HALO == 1:
        mbarrier.arrive(empty.index(slot(i, config.slots)), count=1)
    return dk, dv


@gluon.jit
def _keys_consumer(descs, buffers, signals, band, scale, config: gl.constexpr, own: gl.constexpr):
    run = run_of(band.total)
    dk_desc, dv_desc = descs
    q_s, do_s, x_s, k_s, v_s = buffers
    k_full, _, full, empty = signals
    HALO: gl.constexpr = config.halo
    rows = gl.arange(0, TILE, gl.SliceLayout(1, SCORES))  # keys
    columns = gl.arange(0, TILE, gl.SliceLayout(0, SCORES))  # queries
    part = gl.expand_dims(gl.arange(0, AUX, gl.SliceLayout(0, OPERAND)), 0) + gl.zeros((TILE, AUX), gl.int32, OPERAND)
    pick_lse = gl.where(part < 3, -1.0, 0.0).to(gl.bfloat16)
    pick_delta = gl.where((part >= 3) & (part < 6), -1.0, 0.0).to(gl.bfloat16)
    row, column = triangle(rows, columns, 0)
    lower = mask_of(row <= column)
    rest = band.width - HALO * TILE
    at = after(place_of(run.start, band, 0), band, own)
    seen = gl.to_tensor(0)
    for t in range(own, run.stop - run.start, 2):
        i = at.ring
        mine = slot(t, KEY_BUFFERS)
        mbarrier.wait(k_full.index(mine), phase(t, KEY_BUFFERS))
        k = k_s.index(mine).reshape((TILE, WIDTH))
        v = v_s.index(mine).reshape((TILE, WIDTH))
        move_to(full, empty, seen, i, i + HALO + 1, config.slots)
        seen = i + HALO + 1
        row, column = triangle(rows, columns, t)
        masks = (row, column, rest, lower)
        dk, dv = _one_key_tile(
            k, v, (q_s, do_s, x_s), signals, i, t, masks, (pick_lse, pick_delta), scale * LOG2E, config
        )
        then = after(at, band, 2)
        release(empty, i + 1, gl.minimum(then.ring, seen), config.slots)
        k.store((dk * scale).to(k_s.dtype))
        v.store(dv.to(v_s.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(dk_desc, [at.batch, at.head, at.tile * TILE, 0], k_s.index(mine))
        tma.async_copy_shared_to_global(dv_desc, [at.batch, at.head, at.tile * TILE, 0], v_s.index(mine))
        at = then
    settle()


@gluon.jit(do_not_specialize=NUMBERS)
def _keys_kernel(
    q_desc,
    k_desc,
    v_desc,
    do_desc,
    x_desc,
    dk_desc,
    dv_desc,
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
    k_s = gl.allocate_shared_memory(q_desc.dtype, [KEY_BUFFERS, 1, 1, TILE, WIDTH], q_desc.layout)
    v_s = gl.allocate_shared_memory(q_desc.dtype, [KEY_BUFFERS, 1, 1, TILE, WIDTH], q_desc.layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [config.slots, 1, 1, TILE, WIDTH], q_desc.layout)
    do_s = gl.allocate_shared_memory(q_desc.dtype, [config.slots, 1, 1, TILE, WIDTH], q_desc.layout)
    x_s = gl.allocate_shared_memory(x_desc.dtype, [config.slots, 1, 1, TILE, AUX], x_desc.layout)
    descs = (q_desc, k_desc, v_desc, do_desc, x_desc)
    buffers = (q_s, do_s, x_s, k_s, v_s)
    SLOTS: gl.constexpr = config.slots
    signals = (barriers(KEY_BUFFERS, 1), barriers(KEY_BUFFERS, 1), barriers(SLOTS, 1), barriers(SLOTS, 2))
    gl.warp_specialize(
        [
            (_keys_consumer, ((dk_desc, dv_desc), buffers, signals, band, scale, config, 0)),
            (_keys_consumer, ((dk_desc, dv_desc), buffers, signals, band, scale, config, 1)),
            (_keys_producer, (descs, buffers, signals, band, config)),
        ],
        PAIR_WARPS,
        PAIR_REGISTERS,
    )
