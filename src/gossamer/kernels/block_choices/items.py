"""Lists of entries as items of work, the longest first: short ones fill what the last of them leave idle."""

import triton
import triton.language as tl


@triton.jit
def items_of(total, PART: tl.constexpr):
    """How many items a list of so many entries makes."""
    return tl.maximum((total + PART // 2) // PART, tl.minimum(total, 1))


@triton.jit
def _class_of(size, PART: tl.constexpr, CLASSES: tl.constexpr):
    """Items of a class are of about the same length; the highest is the longest."""
    return tl.minimum(size * CLASSES // (PART + PART // 2), CLASSES - 1)


@triton.jit
def list_items(
    totals, starts, first_items, items, parts, axes, most,
    PART: tl.constexpr, WIDTH: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Where each block's list starts, the number of its first item, and for each program of a lane the block of its
    item and which part of the block's list that is; beyond the last item, a block that there is not.

    Items are numbered by block and part, and worked on class by class.
    """
    lane = tl.program_id(0)
    row, place_row = lane * axes.blocks, lane * most
    number = tl.arange(0, CLASSES)
    full = number == PART * CLASSES // (PART + PART // 2)
    held = tl.zeros((CLASSES,), tl.int32)
    entries, listed = 0, 0
    for first in range(0, axes.blocks, WIDTH):
        block = first + tl.arange(0, WIDTH)
        total = tl.load(totals + row + block, mask=block < axes.blocks, other=0)
        count = items_of(total, PART)
        tl.store(starts + row + block, entries + tl.cumsum(total, 0) - total, mask=block < axes.blocks)
        tl.store(first_items + row + block, listed + tl.cumsum(count, 0) - count, mask=block < axes.blocks)
        last = _class_of(total - (count - 1) * PART, PART, CLASSES)
        held += tl.sum(((last[:, None] == number[None, :]) & (count > 0)[:, None]).to(tl.int32), 0)
        held += tl.where(full, tl.sum(tl.maximum(count - 1, 0), 0), 0)
        entries += tl.sum(total, 0)
        listed += tl.sum(count, 0)
    begin = listed - tl.cumsum(held, 0)
    for first in range(0, axes.blocks, WIDTH):
        block = first + tl.arange(0, WIDTH)
        total = tl.load(totals + row + block, mask=block < axes.blocks, other=0)
        count = items_of(total, PART)
        last = _class_of(total - (count - 1) * PART, PART, CLASSES)
        own = ((last[:, None] == number[None, :]) & (count > 0)[:, None]).to(tl.int32)
        place = tl.sum(own * (begin[None, :] + tl.cumsum(own, 0) - 1), 1)
        tl.store(items + place_row + place, block, mask=count > 0)
        tl.store(parts + place_row + place, count - 1, mask=count > 0)
        begin += tl.sum(own, 0)
        more = tl.maximum(count - 1, 0)
        place = tl.sum(tl.where(full, begin, 0), 0) + tl.cumsum(more, 0) - more
        for part in range(0, tl.max(more, 0)):
            tl.store(items + place_row + place + part, block, mask=part < more)
            tl.store(parts + place_row + place + part, tl.zeros_like(block) + part, mask=part < more)
        begin += tl.where(full, tl.sum(more, 0), 0)
    for first in range(listed, most, WIDTH):
        place = first + tl.arange(0, WIDTH)
        tl.store(items + place_row + place, tl.zeros_like(place) + axes.blocks, mask=place < most)
