"""Few rows that are computed in shares: gathered once for each, and their parts joined where the rows belong.

Parts are [B, H, shares · rows, width], dense, every share with the wanted rows first; they are added in one order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Operands, launch
from .operands import Results
from .vectors import TILE, copy, rows_of, strides_of, tile_of, tiles_of

TOGETHER = tl.constexpr(16)
"""Shares that are read at a time."""


def gathered(q: Tensor, queries: Tensor) -> Tensor:
    """The rows of q at `queries`, int64 [n], in their order."""
    some = q.new_empty(*q.shape[:2], queries.shape[0], q.shape[3])
    launch(_prepared_taking, (q, *(None,) * 4, some, *(None,) * 5, queries, None))
    return some


def taken(q: Tensor, results: Results, queries: Tensor, absent: Tensor) -> tuple[Tensor, Results, Tensor]:
    """(rows of q at `queries`, the same of the results, a log-sum-exp that is minus infinity where `absent`).

    `absent` is bool [Q]. One launch for all, bound by memory.
    """
    lse, shape = results.lse, (*q.shape[:2], queries.shape[0])
    some = [None if x is None else x.new_empty(*shape, *x.shape[3:]) for x in (q, *results)]
    others = lse.new_empty(lse.shape)
    launch(_prepared_taking, (q, *results, *some, others, queries, absent))
    return some[0], Results(*some[1:]), others


def _prepared_taking(operands: Operands) -> Launch:
    q, out, lse, grad_out, grad_lse, *_, queries, absent = operands
    (batch, heads, length, width), count = q.shape, queries.shape[0]
    value_width = width if out is None else out.shape[3]
    rows = rows_of(width, value_width)
    wide = [(0, 0, 0) if x is None else strides_of(x) for x in (q, out, grad_out)]
    lines = [(0, 0) if x is None else x.stride()[:2] for x in (lse, grad_lse)]
    arguments = *operands, *(step for strides in (*wide, *lines) for step in strides), batch, heads, count, length
    blocks = tiles_of(count, rows) + (0 if absent is None else tiles_of(length, TILE))
    return Launch(_take, batch * heads * blocks, arguments, (width, value_width, rows, TILE), None)


def write_joined(
    parts: Tensor, part_lse: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor, queries: Tensor, *, shares: int
) -> None:
    """Writes the rows of `out` and `lse` at `queries`: one softmax over the keys of all shares, and the sinks [H].

    `part_lse` is float32 [B, H, shares · rows], the natural log-sum-exp of each part; a row that sees nothing is zero.
    """
    launch(_prepared_joining, (parts, part_lse, sinks, out, lse, queries), shares)


def write_sums(parts: Tensor, x: Tensor, queries: Tensor, *, shares: int) -> None:
    """Writes the sums of the parts, added in float32, to the rows of `x` [B, H, N, width] at `queries`, int64 [m]."""
    launch(_prepared_joining, (parts, None, None, x, None, queries), shares)


def _prepared_joining(operands: Operands, shares: int) -> Launch:
    parts, _, _, x, lse, queries = operands
    batch, heads, length, width = parts.shape
    count = queries.shape[0]
    strides = *x.stride()[:3], *((0, 0) if lse is None else lse.stride()[:2])
    arguments = *operands, *strides, heads, count, length // shares, shares
    return Launch(_join, batch * heads * count, arguments, (width, triton.next_power_of_2(width)), None)


@triton.jit(
    do_not_specialize=[
        *("q_batch", "q_head", "q_row", "out_batch", "out_head", "out_row", "grad_batch", "grad_head", "grad_row"),
        *("lse_batch", "lse_head", "grad_lse_batch", "grad_lse_head", "batches", "heads", "count", "length"),
    ]
)
def _take(
    q, out, lse, grad_out, grad_lse, some_q, some_out, some_lse, some_grad_out, some_grad_lse, others, queries, absent,
    q_batch, q_head, q_row, out_batch, out_head, out_row, grad_batch, grad_head, grad_row,
    lse_batch, lse_head, grad_lse_batch, grad_lse_head, batches, heads, count, length,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """One tile of rows of every tensor that there is, or a piece of the others' log-sum-exp."""
    number = tl.program_id(0)
    tiles = batches * heads * tl.cdiv(count, ROWS)
    if number < tiles:
        batch, head, place, exists = tile_of(number, heads, count, ROWS)
        query = tl.load(queries + place)
        row = (batch * heads + head) * count + place
        copy(some_q, row, q, batch * q_batch + head * q_head + query * q_row, exists, WIDTH)
        if out is not None:
            copy(some_out, row, out, batch * out_batch + head * out_head + query * out_row, exists, VALUE_WIDTH)
            at = batch * grad_batch + head * grad_head + query * grad_row
            copy(some_grad_out, row, grad_out, at, exists, VALUE_WIDTH)
            tl.store(some_lse + row, tl.load(lse + batch * lse_batch + head * lse_head + query), mask=exists)
        if grad_lse is not None:
            at = batch * grad_lse_batch + head * grad_lse_head + query
            tl.store(some_grad_lse + row, tl.load(grad_lse + at), mask=exists)
    elif absent is not None:
        its_batch, its_head, piece, inside = tile_of(number - tiles, heads, length, LINE)
        values = tl.load(lse + its_batch * lse_batch + its_head * lse_head + piece)
        values = tl.where(tl.load(absent + piece), float("-inf"), values)
        tl.store(others + (its_batch * heads + its_head) * length + piece, values, mask=inside)


@triton.jit(
    do_not_specialize=[
        *("x_batch", "x_head", "x_row", "lse_batch", "lse_head"),
        *("heads", "count", "rows", "shares"),
    ]
)
def _join(
    parts, part_lse, sinks, x, lse, queries, x_batch, x_head, x_row, lse_batch, lse_head, heads, count, rows, shares,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One row of one head: the sum of its parts, weighted by their log-sum-exps where there are any."""
    number = tl.program_id(0)
    matrix = number // count
    row = number - matrix * count
    batch, head = (matrix // heads).to(tl.int64), (matrix % heads).to(tl.int64)
    query = tl.load(queries + row)
    first = matrix.to(tl.int64) * rows * shares + row
    columns = tl.arange(0, PADDED)
    each = tl.arange(0, TOGETHER)
    highest = float("-inf")
    if part_lse is not None:
        if sinks is not None:
            sink = tl.load(sinks + head).to(tl.float32)
            highest = sink
        for begin in range(0, shares, TOGETHER):
            there = begin + each < shares
            found = tl.load(part_lse + first + (begin + each) * rows, mask=there, other=float("-inf"))
            highest = tl.maximum(highest, tl.max(found, 0))
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        total = 0.0
        if sinks is not None:
            total += tl.exp(sink - highest)
    acc = tl.zeros([PADDED], tl.float32)
    for begin in range(0, shares, TOGETHER):
        there = begin + each < shares
        place = first + (begin + each) * rows
        mask = there[:, None] & (columns < WIDTH)[None, :]
        values = tl.load(parts + place[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if part_lse is not None:
            weights = tl.exp(tl.load(part_lse + place, mask=there, other=float("-inf")) - highest)
            total += tl.sum(weights, 0)
            values *= weights[:, None]
        acc += tl.sum(values, 0)
    if part_lse is not None:
        acc = acc / tl.where(total > 0, total, 1.0)
    target = x + batch * x_batch + head * x_head + query * x_row
    tl.store(target + columns, acc.to(x.dtype.element_ty), mask=columns < WIDTH)
    if part_lse is not None:
        tl.store(lse + batch * lse_batch + head * lse_head + query, highest + tl.log(total))
