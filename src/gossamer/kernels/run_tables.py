"""Where runs begin and end, worked out on the device from what it alone knows; nothing comes back to the host.

Tables are int32 [n] where all sequences share them and [B, n] where each has its own; no end of a run ever falls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Places of an order that a program takes."""


class Order(NamedTuple):
    """Places by the remainder of their position, then by position: place `i` is at `offset + index[i]`.

    Or at `offset + i`, where there is no index.
    """

    index: Tensor | None
    count: int
    offset: int


class Work(NamedTuple):
    """A kernel of one program an item, and what it is called with."""

    kernel: Any
    items: int
    operands: tuple[Tensor | None, ...]
    numbers: tuple[int, ...]
    constants: tuple[int, ...]


Launch = Callable[[Work], None]


def launched(work: Work) -> None:
    """Runs the work as Triton does."""
    if work.items:
        work.kernel[(work.items,)](*work.operands, *work.numbers, *work.constants)


def confined(
    runs: tuple[Tensor, Tensor], own: Order, other: Order, within: Tensor, *, keys: int, step: int, launch: Launch
) -> tuple[Tensor, Tensor]:
    """The runs `low[i] … high[i] - 1` of each place of `own`, cut to what of `other` lies within each sequence.

    `low` and `high` are [n] and the results [B, n]; `within` is int32 [B, 2], in positions, of which `keys` exist. A
    place outside gets an empty run at the nearer end, so that neither end falls.
    """
    low, high = runs
    batch, blocks = within.shape[0], -(-own.count // BLOCK)
    cut = low.new_empty(batch, own.count), low.new_empty(batch, own.count)
    operands = low, high, *cut, within, own.index, other.index
    numbers = own.count, own.offset, other.count, other.offset, keys, blocks, other.count.bit_length()
    launch(Work(_confine, batch * blocks, operands, numbers, (step, BLOCK)))
    return cut


def turned(start: Tensor, stop: Tensor, keys: int, *, launch: Launch) -> tuple[Tensor, Tensor]:
    """(first, last), [B, keys]: which queries see each key, where query i of [B, n] sees `start[i] … stop[i] - 1`."""
    (batch, count), blocks = start.shape, -(-keys // BLOCK)
    seen = start.new_empty(batch, keys), start.new_empty(batch, keys)
    numbers = count, keys, blocks, count.bit_length()
    launch(Work(_turn, batch * blocks, (start, stop, *seen), numbers, (BLOCK,)))
    return seen


@triton.jit
def _before(order, residue, position, rounds, STEP: tl.constexpr):
    """How many places of the order come before this position among those of its residue, and before this residue."""
    if order.index is None:
        return tl.minimum(tl.maximum(position - order.offset, 0), order.count) + tl.zeros_like(residue)
    else:
        low = tl.zeros_like(residue)
        high = low + order.count
        for _ in range(rounds):
            middle = (low + high) // 2
            open = low < high
            at = order.offset + tl.load(order.index + middle, mask=open, other=0).to(tl.int32)
            here = _residue(at, STEP)
            earlier = (here < residue) | ((here == residue) & (at < position))
            low = tl.where(open & earlier, middle + 1, low)
            high = tl.where(open & ~earlier, middle, high)
        return low


@triton.jit
def _residue(position, STEP: tl.constexpr):
    """The remainder, from 0 on for negative positions too."""
    return (position % STEP + STEP) % STEP


@triton.jit(do_not_specialize=["own_count", "own_offset", "other_count", "other_offset", "keys", "blocks", "rounds"])
def _confine(
    low, high, cut_low, cut_high, within, own, other,
    own_count, own_offset, other_count, other_offset, keys, blocks, rounds,
    STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0) // blocks
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = place < own_count
    begin = tl.minimum(tl.maximum(tl.load(within + 2 * batch), 0), keys)
    end = tl.minimum(tl.maximum(tl.load(within + 2 * batch + 1), begin), keys)
    position = place + own_offset
    if own is not None:
        position = tl.load(own + place, mask=exists, other=0).to(tl.int32) + own_offset
    residue = _residue(position, STEP)
    order = Order(other, other_count, other_offset)
    first = _before(order, residue, begin, rounds, STEP)
    last = _before(order, residue, end, rounds, STEP)
    bottom, top = tl.where(position < end, first, last), tl.where(position < begin, first, last)
    cut = batch.to(tl.int64) * own_count + place
    tl.store(cut_low + cut, _between(tl.load(low + place, mask=exists), bottom, top), mask=exists)
    tl.store(cut_high + cut, _between(tl.load(high + place, mask=exists), bottom, top), mask=exists)


@triton.jit
def _between(x, bottom, top):
    return tl.minimum(tl.maximum(x, bottom), top)


@triton.jit(do_not_specialize=["count", "keys", "blocks", "rounds"])
def _turn(start, stop, first, last, count, keys, blocks, rounds, BLOCK: tl.constexpr):
    batch = tl.program_id(0) // blocks
    key = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    head = batch.to(tl.int64) * count
    began, ended = Order(start + head, count, 0), Order(stop + head, count, 0)
    one = _before(ended, tl.zeros_like(key), key + 1, rounds, 1)
    past = tl.maximum(one, _before(began, tl.zeros_like(key), key + 1, rounds, 1))
    seen = batch.to(tl.int64) * keys + key
    tl.store(first + seen, one, mask=key < keys)
    tl.store(last + seen, past, mask=key < keys)
