"""Who chose what, turned about: for tiles of queries what they share, for blocks the queries that chose them.

A tile's queries and a block meet in one word, of which a bit says that its query chose the block. Blocks that many of a
tile chose are worth computing for the whole tile; the others are rare, and computed for those who chose them. Where
these are few, the tile computes them too, and is called complete.
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
def highest_in(word):
    """The highest bit that is set in each 32-bit word; -1 where none is."""
    bits = word.to(tl.uint32, bitcast=True)
    bits |= bits >> 1
    bits |= bits >> 2
    bits |= bits >> 4
    bits |= bits >> 8
    bits |= bits >> 16
    return ones_in(bits.to(tl.int32, bitcast=True)) - 1


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
def is_shared(word, LEAST: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr):
    """Whether a block is computed for a whole tile, which may not be complete: `LEAST` of its queries chose it, and as
    many again for each part of the tile that would have to compute it."""
    return (word != 0) & (ones_in(word) >= LEAST * (parts_in(word, PART, PARTS) + 1))


@triton.jit
def parts_in(word, PART: tl.constexpr, PARTS: tl.constexpr):
    """How many parts of a tile have a query that chose a block."""
    parts = tl.zeros_like(word)
    for part in tl.static_range(PARTS):
        parts += (in_part(word, part, PART, PARTS) != 0).to(tl.int32)
    return parts


@triton.jit
def in_part(word, part: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr):
    """The bits of a part's queries, as its own word."""
    if PARTS == 1:
        return word
    else:
        ones: tl.constexpr = 2**PART - 1
        return (word >> (part * PART)) & ones


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def _is_complete(words, axes, most, LEAST: tl.constexpr, WEIGHT: tl.constexpr, WIDTH: tl.constexpr,
                 PART: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """Whether a tile computes all that its queries chose: there is room in its list, and its rare choices, with what
    joining them costs whatever their number, are worth no list of their own."""
    TILE: tl.constexpr = PART * PARTS
    chosen, parts, entries = 0, 0, 0
    for first in range(0, axes.blocks, WIDTH):
        block = first + tl.arange(0, WIDTH)
        word = tl.load(words + block, mask=block < axes.blocks, other=0)
        rare = ~is_shared(word, LEAST, PART, PARTS)
        chosen += tl.sum((word != 0).to(tl.int32), 0)
        parts += tl.sum(tl.where(rare, parts_in(word, PART, PARTS), 0), 0)
        entries += tl.sum(tl.where(rare, ones_in(word), 0), 0)
    return (chosen <= most) & (parts * WEIGHT * TILE <= (entries + TILE) * 32)


@triton.jit
def list_shared(
    marks, blocks, members, counts, complete, own, axes, most, LEAST: tl.constexpr, WEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Lists, for each tile, the blocks that its queries share, in ascending order, and what each part takes of them.

    A part takes what some query of it chose, and of others in a row every `STEP`th.
    """
    number = tl.program_id(0)
    words = marks + number.to(tl.int64) * axes.blocks
    row = number.to(tl.int64) * most
    takes_all = False
    if complete is not None:
        takes_all = _is_complete(words, axes, most, LEAST, WEIGHT, WIDTH, PART, PARTS)
        tl.store(complete + number, takes_all.to(tl.int32))
    listed = 0
    for first in range(0, axes.blocks, WIDTH):
        block = first + tl.arange(0, WIDTH)
        word = tl.load(words + block, mask=block < axes.blocks, other=0)
        shared = is_shared(word, LEAST, PART, PARTS) | (takes_all & (word != 0))
        place = listed + tl.cumsum(shared.to(tl.int32), 0) - 1
        tl.store(blocks + row + place, block, mask=shared)
        tl.store(members + row + place, word, mask=shared)
        listed += tl.sum(shared.to(tl.int32), 0)
    tl.store(counts + number, listed)
    if own is not None:
        tl.debug_barrier()  # what was listed is read by other threads
        for part in tl.static_range(PARTS):
            taken, latest = 0, -1
            mine = number * PARTS + part
            for first in range(0, listed, WIDTH):
                place = first + tl.arange(0, WIDTH)
                there = place < listed
                word = in_part(tl.load(members + row + place, mask=there, other=0), part, PART, PARTS)
                block = tl.load(blocks + row + place, mask=there, other=0)
                last = tl.maximum(tl.associative_scan(tl.where(word != 0, place, -1), 0, _later), latest)
                takes = there & ((place - last) % STEP == 0)
                at = mine.to(tl.int64) * most + taken + tl.cumsum(takes.to(tl.int32), 0) - 1
                tl.store(own.places + at, place, mask=takes)
                tl.store(own.blocks + at, block, mask=takes)
                tl.store(own.members + at, word, mask=takes)
                taken += tl.sum(takes.to(tl.int32), 0)
                latest = tl.max(last, 0)
            tl.store(own.counts + mine, taken)


@triton.jit
def count_rare(
    marks, complete, before, totals, latest, axes, tiles,
    LEAST: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """How many of the tiles before chose each block rarely, how many of all, and the last query that chose it."""
    columns = tl.cdiv(axes.blocks, COLUMNS)
    lane = tl.program_id(0) // columns
    block = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.int32)
    last = tl.full((COLUMNS,), -1, tl.int32)
    for first in range(0, tiles, ROWS):
        tile = first + tl.arange(0, ROWS)
        exists = (tile < tiles)[:, None] & (block < axes.blocks)[None, :]
        at = (lane.to(tl.int64) * tiles + tile)[:, None] * axes.blocks + block[None, :]
        word = tl.load(marks + at, mask=exists, other=0)
        shared = is_shared(word, LEAST, PART, PARTS)
        if complete is not None:
            shared |= (tl.load(complete + lane * tiles + tile, mask=tile < tiles, other=0) != 0)[:, None]
        count = tl.where(shared, 0, ones_in(word))
        tl.store(before + at, total[None, :] + tl.cumsum(count, 0) - count, mask=exists)
        total += tl.sum(count, 0)
        query = tile[:, None] * (PART * PARTS) + highest_in(word)
        last = tl.maximum(last, tl.max(tl.where(word != 0, query, -1), 0))
    tl.store(totals + lane * axes.blocks + block, total, mask=block < axes.blocks)
    tl.store(latest + lane * axes.blocks + block, last, mask=block < axes.blocks)


@triton.jit
def enter_rare(
    indices, marks, complete, before, starts, entries, counts, axes, tiles,
    LEAST: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr, CHOSEN: tl.constexpr,
    PADDED: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Enters rare choices into the lists of their blocks, in ascending order of the queries.

    An entry is `query * PADDED + rank`, its rank that among the query's own entries, of which there are `counts`. A
    block that a query names twice is entered once.
    """
    TILE: tl.constexpr = PART * PARTS
    parts = tl.cdiv(axes.queries, QUERIES)
    lane = tl.program_id(0) // parts
    query = tl.program_id(0) % parts * QUERIES + tl.arange(0, QUERIES)
    first = lane.to(tl.int64) * axes.queries
    done = tl.zeros_like(query) != 0
    if complete is not None:
        done = tl.load(complete + lane * tiles + query // TILE, mask=query < axes.queries, other=1) != 0
        if tl.min(done.to(tl.int32), 0) == 1:
            tl.store(counts + first + query, tl.zeros_like(query), mask=query < axes.queries)
            return
    block, sees = _chosen(indices, lane, query, axes, SIZE, CHOSEN, PADDED)
    sees &= ~done[:, None]
    slot = tl.arange(0, PADDED)
    earlier = (block[:, :, None] == block[:, None, :]) & (slot[None, None, :] < slot[None, :, None])
    sees &= tl.sum(earlier.to(tl.int32), 2) == 0
    at = (lane.to(tl.int64) * tiles + query // TILE)[:, None] * axes.blocks + block
    word = tl.load(marks + at, mask=sees, other=0)
    sees &= ~is_shared(word, LEAST, PART, PARTS)
    lower = (1 << (query % TILE)) - 1
    place = tl.load(starts + lane * axes.blocks + block, mask=sees, other=0)
    place += tl.load(before + at, mask=sees, other=0) + ones_in(word & lower[:, None])
    rank = tl.cumsum(sees.to(tl.int32), 1) - 1
    tl.store(entries + first * CHOSEN + place, query[:, None] * PADDED + rank, mask=sees)
    tl.store(counts + first + query, tl.sum(sees.to(tl.int32), 1), mask=query < axes.queries)
