"""What the kernels of indexed attention do alike: find their query and its keys, and handle rows of any width.

A row is its leading power of two of columns and, where the width is more than that, a tail: 576 columns are 512 and
64, and not 1024. The rows of a tile are the heads that share a query's keys, or the keys, or heads of several queries.
"""

import triton
import triton.language as tl

from ..rows import padded

LOG2E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def leading(width):
    """Columns that a tile of the first part has."""
    return max(16, 1 << (width.bit_length() - 1))


@triton.constexpr_function
def in_head(width):
    """Columns of the first part."""
    return min(leading(width), width)


@triton.constexpr_function
def in_tail(width):
    """Columns of the second part, which may be none."""
    return width - in_head(width)


@triton.jit
def row_of(x, batch, head, index):
    """Where rows start, in units; 64 bits, because tensors are larger than 32 can tell."""
    return batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head + index.to(tl.int64) * x.row


@triton.jit
def part_cells(x, row, exists, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """(pointers, mask) of the columns from `FIRST` on, as many as `WIDTH`."""
    column = tl.arange(0, padded(WIDTH))
    mask = exists[:, None]
    if padded(WIDTH) != WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return x.pointer + (row * x.unit)[:, None] + ((column + FIRST) * x.column)[None, :], mask


@triton.jit
def load_rows(x, batch, head, index, exists, WIDTH: tl.constexpr):
    """(the leading columns of rows, the columns behind); zero where rows do not exist, one such where no columns do."""
    row = row_of(x, batch, head, index)
    pointers, mask = part_cells(x, row, exists, 0, in_head(WIDTH))
    leaders = tl.load(pointers, mask=mask, other=0.0)
    if in_tail(WIDTH):
        pointers, mask = part_cells(x, row, exists, leading(WIDTH), in_tail(WIDTH))
        return leaders, tl.load(pointers, mask=mask, other=0.0)
    else:
        return leaders, tl.zeros((exists.shape[0], 1), tl.float32)


@triton.jit
def store_rows(x, batch, head, index, exists, leaders, behind, WIDTH: tl.constexpr):
    """Writes what `load_rows` reads."""
    row = row_of(x, batch, head, index)
    pointers, mask = part_cells(x, row, exists, 0, in_head(WIDTH))
    tl.store(pointers, leaders.to(x.pointer.dtype.element_ty), mask=mask)
    if in_tail(WIDTH):
        pointers, mask = part_cells(x, row, exists, leading(WIDTH), in_tail(WIDTH))
        tl.store(pointers, behind.to(x.pointer.dtype.element_ty), mask=mask)


@triton.jit
def zeros_tail(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Where a sum of tails starts."""
    if in_tail(WIDTH):
        return tl.zeros((ROWS, padded(in_tail(WIDTH))), tl.float32)
    else:
        return tl.zeros((ROWS, 1), tl.float32)


@triton.jit
def across(a, a_tail, b, b_tail, WIDTH: tl.constexpr):
    """The products of rows with rows."""
    product = tl.dot(a, tl.trans(b), input_precision="ieee")
    if in_tail(WIDTH):
        product = tl.dot(a_tail, tl.trans(b_tail), product, input_precision="ieee")
    return product


@triton.jit
def add_tail(weights, tile, total, WIDTH: tl.constexpr):
    """Adds weighted tails."""
    if in_tail(WIDTH):
        return tl.dot(weights, tile, total, input_precision="ieee")
    else:
        return total


@triton.jit
def query_of(number, chosen, heads, axes, PARTS: tl.constexpr):
    """(part of the heads, query, batch, key head, row of the choice) of a program: the heads of a query side by side,
    then queries, of which the last, who may see most, come first."""
    part = number % PARTS
    query = axes.queries - 1 - number // PARTS % axes.queries
    lane = number // PARTS // axes.queries
    return part, query, lane // heads.groups, lane % heads.groups, choice_of(chosen, heads, axes, lane, query)


@triton.jit
def choice_of(chosen, heads, axes, lane, query):
    """Where the row of a query stands among all rows."""
    return run_of(chosen, heads, lane) * axes.queries + query


@triton.jit
def run_of(chosen, heads, lane):
    """The run of a key head: those of a run follow one another, and so do runs of a sequence."""
    return (lane // (heads.groups // chosen.runs)).to(tl.int64)


@triton.jit
def heads_of(part, group, heads, ROWS: tl.constexpr):
    """(heads of a tile, which of them exist)."""
    place = part * ROWS + tl.arange(0, ROWS)
    return group * heads.repeats + tl.minimum(place, heads.repeats - 1), place < heads.repeats


@triton.jit
def keys_at(at, count, chosen, choice, axes, position, BLOCK: tl.constexpr, CAUSAL: tl.constexpr):
    """(keys, which of them the query sees) at places of its row; key 0 where nothing stands."""
    there = at < count
    number = tl.load(chosen.indices + choice * chosen.size + at // BLOCK, mask=there, other=0)
    key = number * BLOCK + at % BLOCK
    if BLOCK > 1:
        there = there & (key < axes.keys)
        if CAUSAL:
            there = there & (key <= position)
    return key, there
