"""The forward kernels over chosen blocks: tiles of queries over what they share, blocks over those who chose them rarely.

Heads that share a key head share its choices: a row of a tile is a head of a query. What a block gives to a query that
chose it rarely is a softmax of its own, and these are joined by their log-sum-exp.
"""

import triton
import triton.language as tl

from .tiles import load_tile, padded, store_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def lane_in(heads, number):
    """(batch, key head, lane of the lists) of a key head of a batch row."""
    batch, key_head = number // heads.key_heads, number % heads.key_heads
    return batch, key_head, number // heads.alike


@triton.jit
def last_seen(axes, query):
    """The last key that each query may see."""
    if axes.causal:
        return tl.minimum(query + axes.offset, axes.keys - 1)
    else:
        return tl.zeros_like(query) + axes.keys - 1


@triton.jit
def forward_tiles(
    q, k, v, out, lse, sinks, shared, heads, axes, unit,
    SIZE: tl.constexpr, TILE: tl.constexpr, REPEATS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Writes `out` and `lse` of every query over the blocks that its tile shares, of those that it chose."""
    ROWS: tl.constexpr = TILE * triton.next_power_of_2(REPEATS)
    number = tl.program_id(0)
    tile = shared.tiles - 1 - number % shared.tiles
    batch, key_head, lane = lane_in(heads, number // shared.tiles)
    row = tl.arange(0, ROWS)
    member, repeat = row % TILE, row // TILE
    query, head = tile * TILE + member, key_head * REPEATS + repeat
    exists = (query < axes.queries) & (repeat < REPEATS)
    last = last_seen(axes, query)
    all_see = tl.minimum(last_seen(axes, tile * TILE), axes.keys - 1)
    q_tile = load_tile(q, batch, head, query, exists, WIDTH)
    if sinks is None:
        peak, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    else:
        peak = tl.load(sinks + head, mask=exists, other=0.0).to(tl.float32) * LOG2E
        total = tl.full((ROWS,), 1.0, tl.float32)
    mean = tl.zeros((ROWS, padded(VALUE_WIDTH)), tl.float32)
    place = lane.to(tl.int64) * shared.tiles + tile
    start = place * shared.most
    for step in tl.range(0, tl.load(shared.counts + place), num_stages=NUM_STAGES):
        block = tl.load(shared.blocks + start + step)
        word = tl.load(shared.members + start + step)
        key = block * SIZE + tl.arange(0, SIZE)
        k_tile = load_tile(k, batch, key_head, key, key < axes.keys, WIDTH)
        v_tile = load_tile(v, batch, key_head, key, key < axes.keys, VALUE_WIDTH)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        if block * SIZE + SIZE - 1 > all_see:
            score = tl.where(key[None, :] <= last[:, None], score, float("-inf"))
        chose = ((word >> member) & 1) != 0
        higher = tl.where(chose, tl.maximum(peak, tl.max(score, 1) * unit), peak)
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
        weight = tl.exp2(score * unit - tl.where(chose, finite, float("inf"))[:, None])
        shrink = tl.exp2(peak - finite)
        total = total * shrink + tl.sum(weight, 1)
        mean = tl.dot(weight.to(v_tile.dtype), v_tile, mean * shrink[:, None], input_precision="ieee")
        peak = higher
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    store_tile(out, batch, head, query, exists, mean, VALUE_WIDTH)
    at = (batch * heads.count + head).to(tl.int64) * axes.queries + query
    tl.store(lse + at, (peak + tl.log2(total)) / LOG2E, mask=exists)


@triton.jit
def item_of(rare, axes, lane, item, PART: tl.constexpr):
    """(block, first entry, entries, whether they are all of the block's) of an item of work that there is."""
    block = tl.load(rare.items + lane * rare.most + item)
    at = lane * axes.blocks + block
    done = (item - tl.load(rare.first_items + at)) * PART
    total = tl.load(rare.totals + at)
    return block, tl.load(rare.starts + at) + done, tl.minimum(total - done, PART), total <= PART


@triton.jit
def forward_pieces(
    q, k, v, piece_out, piece_lse, rare, heads, axes, first_lane, unit,
    SIZE: tl.constexpr, CHOSEN: tl.constexpr, PART: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """For each entry of a block's list: the softmax over the block alone, and its log-sum-exp in units of log 2."""
    here, item = tl.program_id(0) // rare.most, tl.program_id(0) % rare.most
    batch, key_head, lane = lane_in(heads, first_lane + here)
    if tl.load(rare.items + lane * rare.most + item) >= axes.blocks:
        return
    block, first, count, _ = item_of(rare, axes, lane, item, PART)
    TOGETHER: tl.constexpr = triton.next_power_of_2(REPEATS)
    row = tl.arange(0, ROWS)
    repeat = row % TOGETHER
    key = block * SIZE + tl.arange(0, SIZE)
    k_tile = load_tile(k, batch, key_head, key, key < axes.keys, WIDTH)
    v_tile = load_tile(v, batch, key_head, key, key < axes.keys, VALUE_WIDTH)
    entries = rare.entries + lane.to(tl.int64) * axes.queries * CHOSEN + first
    column = tl.arange(0, padded(VALUE_WIDTH))
    for start in tl.range(0, count, ROWS // TOGETHER, num_stages=NUM_STAGES):
        place = start + row // TOGETHER
        there = (place < count) & (repeat < REPEATS)
        entry = tl.load(entries + place, mask=place < count, other=0)
        query = entry // CHOSEN
        q_tile = load_tile(q, batch, key_head * REPEATS + repeat, query, there, WIDTH)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * unit
        score = tl.where(key[None, :] <= last_seen(axes, query)[:, None], score, float("-inf"))
        peak = tl.max(score, 1)
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        weight = tl.exp2(score - peak[:, None])
        total = tl.sum(weight, 1)
        mean = tl.dot(weight.to(v_tile.dtype), v_tile, input_precision="ieee")
        mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
        at = (here.to(tl.int64) * axes.queries * CHOSEN + entry) * REPEATS + repeat
        mask = there[:, None] & (column < VALUE_WIDTH)[None, :]
        cells = piece_out + at[:, None] * VALUE_WIDTH + column[None, :]
        tl.store(cells, mean.to(piece_out.dtype.element_ty), mask=mask)
        tl.store(piece_lse + at, peak + tl.log2(total), mask=there)


@triton.jit
def rows_here(heads, axes, first_lane, REPEATS: tl.constexpr, ROWS: tl.constexpr):
    """(lane from the first on, batch, lane of the lists, query, repeat, head, whether it exists) of a program's rows."""
    TOGETHER: tl.constexpr = triton.next_power_of_2(REPEATS)
    parts = tl.cdiv(axes.queries, ROWS // TOGETHER)
    here, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    batch, key_head, lane = lane_in(heads, first_lane + here)
    row = tl.arange(0, ROWS)
    repeat = row % TOGETHER
    query = part * (ROWS // TOGETHER) + row // TOGETHER
    return here, batch, lane, query, repeat, key_head * REPEATS + repeat, (query < axes.queries) & (repeat < REPEATS)


@triton.jit
def join_pieces(
    out, lse, piece_out, piece_lse, used, heads, axes, first_lane,
    CHOSEN: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Joins to `out` and `lse` the pieces of each query."""
    here, batch, lane, query, repeat, head, exists = rows_here(heads, axes, first_lane, REPEATS, ROWS)
    at = (batch * heads.count + head).to(tl.int64) * axes.queries + query
    before = tl.load(lse + at, mask=exists, other=float("-inf")) * LOG2E
    used += (lane.to(tl.int64) * axes.queries + query) * CHOSEN
    pieces = (here.to(tl.int64) * axes.queries + query) * CHOSEN * REPEATS + repeat
    peak, any_used = before, query < 0
    for slot in tl.range(0, CHOSEN):
        is_used = tl.load(used + slot, mask=exists, other=0) != 0
        any_used |= is_used
        peak = tl.maximum(peak, tl.load(piece_lse + pieces + slot * REPEATS, mask=is_used, other=float("-inf")))
    if tl.max(any_used.to(tl.int32), 0) == 0:
        return
    finite = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.exp2(before - finite)
    mean = load_tile(out, batch, head, query, any_used, VALUE_WIDTH).to(tl.float32) * total[:, None]
    column = tl.arange(0, padded(VALUE_WIDTH))
    for slot in tl.range(0, CHOSEN):
        is_used = tl.load(used + slot, mask=exists, other=0) != 0
        piece = pieces + slot * REPEATS
        share = tl.exp2(tl.load(piece_lse + piece, mask=is_used, other=float("-inf")) - finite)
        cells = piece_out + piece[:, None] * VALUE_WIDTH + column[None, :]
        mask = is_used[:, None] & (column < VALUE_WIDTH)[None, :]
        mean += tl.load(cells, mask=mask, other=0.0).to(tl.float32) * share[:, None]
        total += share
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    store_tile(out, batch, head, query, any_used, mean, VALUE_WIDTH)
    tl.store(lse + at, (peak + tl.log2(total)) / LOG2E, mask=any_used)
