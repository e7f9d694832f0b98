"""Where a program of a kernel over chosen blocks stands: which rows are its own, and which part of a block's list."""

import triton
import triton.language as tl


@triton.jit
def lane_in(heads, number):
    """(batch, key head, lane of the lists) of a key head of a batch row."""
    batch, key_head = number // heads.key_heads, number % heads.key_heads
    return batch, key_head, number // heads.alike


@triton.jit
def queries_here(heads, queries, ROWS: tl.constexpr):
    """(head of all batch rows, batch, head, query, whether it exists) of a program that has rows of one head."""
    parts = tl.cdiv(queries, ROWS)
    number, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    query = part * ROWS + tl.arange(0, ROWS)
    return number, number // heads.count, number % heads.count, query, query < queries


@triton.jit
def last_seen(axes, query):
    """The last key that each query may see."""
    if axes.causal:
        return tl.minimum(query + axes.offset, axes.keys - 1)
    else:
        return tl.zeros_like(query) + axes.keys - 1


@triton.jit
def item_of(rare, axes, lane, place, PART: tl.constexpr):
    """(block, first entry, entries, the item's number, or -1 where these are all of the block's) of the item that the
    `place`th program of a lane works on, if there is one."""
    block = tl.load(rare.items + lane * rare.most + place)
    part = tl.load(rare.parts + lane * rare.most + place)
    at = lane * axes.blocks + block
    total = tl.load(rare.totals + at)
    count = entries_of_item(total - part * PART, PART)
    number = tl.where(count == total, -1, tl.load(rare.first_items + at) + part)
    return block, tl.load(rare.starts + at) + part * PART, count, number


@triton.jit
def entries_of_item(left, PART: tl.constexpr):
    """How many of the entries that are left an item takes: the last one takes up to half as many more."""
    return tl.where(left < PART + PART // 2, left, PART)


@triton.jit
def rows_here(heads, axes, first_lane, REPEATS: tl.constexpr, ROWS: tl.constexpr):
    """(lane from the first on, batch, lane of the lists, query, repeat, head, whether it exists) of rows."""
    TOGETHER: tl.constexpr = triton.next_power_of_2(REPEATS)
    parts = tl.cdiv(axes.queries, ROWS // TOGETHER)
    here, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    batch, key_head, lane = lane_in(heads, first_lane + here)
    row = tl.arange(0, ROWS)
    repeat = row % TOGETHER
    query = part * (ROWS // TOGETHER) + row // TOGETHER
    return here, batch, lane, query, repeat, key_head * REPEATS + repeat, (query < axes.queries) & (repeat < REPEATS)


@triton.jit
def piece_of(axes, here, rank, query, repeat, CHOSEN: tl.constexpr, REPEATS: tl.constexpr):
    """The number of a piece: neighbouring queries' of a rank stand side by side."""
    return ((here.to(tl.int64) * CHOSEN + rank) * axes.queries + query) * REPEATS + repeat


@triton.jit
def end_of_keys(rare, axes, lane, block):
    """The first key that nobody sees who chose the block."""
    if axes.causal:
        return tl.minimum(axes.keys, tl.load(rare.latest + lane * axes.blocks + block) + axes.offset + 1)
    else:
        return axes.keys
