"""Who chose what, turned about: for tiles of queries the blocks that they share, for blocks the queries that chose them.

A tile's queries and a block meet in one word, of which a bit says that its query chose the block. Blocks that many of a
tile chose are worth computing for the whole tile; the others are rare, and computed for those who chose them.
"""

import triton
import triton.language as tl


@triton.jit
def ones_in(word):
    """How many bits of each 32-bit word are set."""
    bits = word.to(tl.uint32, bitcast=True)
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _chosen(indices, lane, query, axes, SIZE: tl.constexpr, CHOSEN: tl.constexpr, PADDED: tl.constexpr):
    """(blocks that queries chose [queries, padded], whether each is one that some key of is visible)."""
    slot = tl.arange(0, PADDED)
    exists = (query < axes.queries)[:, None] & (slot < CHOSEN)[None, :]
    at = (lane.to(tl.int64) * axes.queries + query)[:, None] * CHOSEN + slot[None, :]
    block = tl.load(indices + at, mask=exists, other=-1)
    sees = (block >= 0) & (block < axes.blocks)
    block = tl.where(sees, block, -1).to(tl.int32)
    if axes.causal:
        sees &= block * SIZE <= (query + axes.offset)[:, None]
    return block, sees


@triton.jit
def mark(
    indices, marks, axes, tiles,
    SIZE: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Sets the bits of a tile's queries in the words of the blocks that they chose."""
    number = tl.program_id(0)
    lane, tile = number // tiles, number % tiles
    member = tl.arange(0, TILE)
    block, sees = _chosen(indices, lane, tile * TILE + member, axes, SIZE, CHOSEN, PADDED)
    words = marks + number.to(tl.int64) * axes.blocks + block
    bits = tl.broadcast_to((1 << member)[:, None], block.shape)
    tl.atomic_or(words, bits, mask=sees, sem="relaxed")


@triton.jit
def list_shared(marks, blocks, members, counts, axes, most, LEAST: tl.constexpr, WIDTH: tl.constexpr):
    """Lists, for each tile, the blocks that at least so many of its queries chose, in ascending order."""
    number = tl.program_id(0)
    words = marks + number.to(tl.int64) * axes.blocks
    row = number.to(tl.int64) * most
    listed = 0
    for first in range(0, axes.blocks, WIDTH):
        block = first + tl.arange(0, WIDTH)
        word = tl.load(words + block, mask=block < axes.blocks, other=0)
        shared = (ones_in(word) >= LEAST).to(tl.int32)
        at = row + listed + tl.cumsum(shared, 0) - 1
        tl.store(blocks + at, block, mask=shared > 0)
        tl.store(members + at, word, mask=shared > 0)
        listed += tl.sum(shared, 0)
    tl.store(counts + number, listed)


@triton.jit
def count_rare(
    marks, before, totals, axes, tiles, LEAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """How many of the tiles before chose each block rarely, and how many of all."""
    columns = tl.cdiv(axes.blocks, COLUMNS)
    lane = tl.program_id(0) // columns
    block = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.int32)
    for first in range(0, tiles, ROWS):
        tile = first + tl.arange(0, ROWS)
        exists = (tile < tiles)[:, None] & (block < axes.blocks)[None, :]
        at = (lane.to(tl.int64) * tiles + tile)[:, None] * axes.blocks + block[None, :]
        count = ones_in(tl.load(marks + at, mask=exists, other=0))
        count = tl.where(count < LEAST, count, 0)
        tl.store(before + at, total[None, :] + tl.cumsum(count, 0) - count, mask=exists)
        total += tl.sum(count, 0)
    tl.store(totals + lane * axes.blocks + block, total, mask=block < axes.blocks)


@triton.jit
def enter_rare(
    indices, marks, before, starts, entries, used, axes, tiles, LEAST: tl.constexpr, SIZE: tl.constexpr,
    TILE: tl.constexpr, CHOSEN: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Enters choices into the lists of their blocks, as `query * CHOSEN + slot`, in ascending order of the queries.

    `used` says of each choice whether it was entered: rare, visible, and the first of its query's that names the block.
    """
    parts = tl.cdiv(axes.queries, QUERIES)
    lane = tl.program_id(0) // parts
    query = tl.program_id(0) % parts * QUERIES + tl.arange(0, QUERIES)
    block, sees = _chosen(indices, lane, query, axes, SIZE, CHOSEN, PADDED)
    slot = tl.arange(0, PADDED)
    earlier = (block[:, :, None] == block[:, None, :]) & (slot[None, None, :] < slot[None, :, None])
    sees &= tl.sum(earlier.to(tl.int32), 2) == 0
    at = (lane.to(tl.int64) * tiles + query // TILE)[:, None] * axes.blocks + block
    word = tl.load(marks + at, mask=sees, other=0)
    sees &= ones_in(word) < LEAST
    lower = (1 << (query % TILE)) - 1
    place = tl.load(starts + lane * axes.blocks + block, mask=sees, other=0)
    place += tl.load(before + at, mask=sees, other=0) + ones_in(word & lower[:, None])
    choice = query[:, None] * CHOSEN + slot[None, :]
    first = lane.to(tl.int64) * axes.queries * CHOSEN
    tl.store(entries + first + place, choice, mask=sees)
    tl.store(used + first + choice, sees.to(tl.int8), mask=(query < axes.queries)[:, None] & (slot < CHOSEN)[None, :])
