"""What the kernels over tables of blocks do alike: find their row, walk its list, and mask what a block hides."""

import triton
import triton.language as tl


@triton.jit
def place_in(table, heads, together, PARTS: tl.constexpr):
    """(row, part of its block, batch, head) of this program, the heaviest rows of a lane first.

    A lane is a key head of a batch row; `together` of its query heads have programs of their own, side by side.
    """
    number = tl.program_id(0)
    slot = number // together % (table.rows * PARTS)
    lane = number // together // (table.rows * PARTS)
    lanes = heads.count // heads.repeats
    batch, head = lane // lanes, lane % lanes * heads.repeats + number % together
    row = tl.load(table.order + layout_of(table, batch, head) * table.rows + slot // PARTS)
    return row, slot % PARTS, batch, head


@triton.jit
def layout_of(table, batch, head):
    """The number of a head's layout."""
    return tl.load(table.layout + batch * table.batch + head)


@triton.jit
def list_of(table, batch, head, row):
    """(first entry, number of entries) of a row's list."""
    at = layout_of(table, batch, head) * table.rows + row
    return tl.load(table.starts + at), tl.load(table.counts + at)


@triton.jit
def bounds_of(within, batch, offset, count):
    """(first, last + 1) of the places of an axis that a batch row's sequence holds; place 0 stands at `offset`."""
    if within is None:
        return 0, count
    else:
        first, last = tl.load(within + 2 * batch), tl.load(within + 2 * batch + 1)
        return tl.maximum(tl.maximum(first, 0) - offset, 0), tl.minimum(last - offset, count)


@triton.jit
def between(place, bounds):
    """Whether each place lies within the bounds."""
    return (place >= bounds[0]) & (place < bounds[1])


@triton.jit
def shown(
    score, table, entry, own, begin, own_bounds, other_bounds, within,
    SIZE: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """The scores [own places, other places from `begin` on] of a tile, minus infinity where its block hides the pair.

    Most tiles lie within all bounds and in a block that is whole: they cost two comparisons.
    """
    other = begin + tl.arange(0, OTHER)
    if (begin < other_bounds[0]) | (begin + OTHER > other_bounds[1]):
        score = tl.where(between(other, other_bounds)[None, :], score, float("-inf"))
    if within is not None:
        score = tl.where(between(own, own_bounds)[:, None], score, float("-inf"))
    if table.tile is not None:
        mask = tl.load(table.tile + entry)
        pairs = table.tiles + mask.to(tl.int64) * (SIZE * SIZE)
        visible = tl.load(pairs + (own % SIZE * SIZE)[:, None] + (other % SIZE)[None, :], mask=mask >= 0, other=1)
        score = tl.where(visible != 0, score, float("-inf"))
    return score
