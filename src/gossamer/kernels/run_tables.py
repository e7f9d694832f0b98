"""Where runs begin and end, worked out on the device from what it alone knows; nothing comes back to the host.

Tables are int32 [n] where all sequences share them and [B, n] where each has its own; no end of a run ever falls.
"""

from __future__ import annotations

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


def confined(
    low: Tensor, high: Tensor, own: Order, other: Order, within: Tensor, *, keys: int, step: int
) -> tuple[Tensor, Tensor]:
    """The runs `low[i] … high[i] - 1` of each place of `own`, cut to what of `other` lies within each sequence.

    `low` and `high` are [n] and the results [B, n]; `within` is int32 [B, 2], in positions, of which `keys` exist. A
    place outside gets an empty run at the nearer end, so that neither end falls.
    """
    batch, within = within.shape[0], within.contiguous()
    cut = low.new_empty(batch, own.count), low.new_empty(batch, own.count)
    _launch(_confine, own.count, batch, low, high, *cut, within, own, other, keys, other.count.bit_length(), step)
    return cut


def turned(start: Tensor, stop: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """(first, last), [B, keys]: which queries see each key, where query i of [B, n] sees `start[i] … stop[i] - 1`."""
    batch, count = start.shape
    first, last = start.new_empty(batch, keys), start.new_empty(batch, keys)
    _launch(_turn, keys, batch, start, stop, first, last, count, keys, count.bit_length())
    return first, last


def _launch(kernel: Any, places: int, batch: int, *arguments: object) -> None:
    if places and batch:
        kernel[(batch, -(-places // BLOCK))](*arguments, BLOCK)


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


@triton.jit(do_not_specialize=["keys", "rounds"])
def _confine(
    low, high, cut_low, cut_high, within, own, other, keys, rounds, STEP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    batch = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = place < own.count
    begin = tl.minimum(tl.maximum(tl.load(within + 2 * batch), 0), keys)
    end = tl.minimum(tl.maximum(tl.load(within + 2 * batch + 1), begin), keys)
    position = place + own.offset
    if own.index is not None:
        position = tl.load(own.index + place, mask=exists, other=0).to(tl.int32) + own.offset
    residue = _residue(position, STEP)
    first = _before(other, residue, begin, rounds, STEP)
    last = _before(other, residue, end, rounds, STEP)
    bottom, top = tl.where(position < end, first, last), tl.where(position < begin, first, last)
    cut = batch.to(tl.int64) * own.count + place
    tl.store(cut_low + cut, _between(tl.load(low + place, mask=exists), bottom, top), mask=exists)
    tl.store(cut_high + cut, _between(tl.load(high + place, mask=exists), bottom, top), mask=exists)


@triton.jit
def _between(x, bottom, top):
    return tl.minimum(tl.maximum(x, bottom), top)


@triton.jit(do_not_specialize=["count", "keys", "rounds"])
def _turn(start, stop, first, last, count, keys, rounds, BLOCK: tl.constexpr):
    batch = tl.program_id(0)
    key = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head = batch.to(tl.int64) * count
    began, ended = Order(start + head, count, 0), Order(stop + head, count, 0)
    one = _before(ended, tl.zeros_like(key), key + 1, rounds, 1)
    past = tl.maximum(one, _before(began, tl.zeros_like(key), key + 1, rounds, 1))
    seen = batch.to(tl.int64) * keys + key
    tl.store(first + seen, one, mask=key < keys)
    tl.store(last + seen, past, mask=key < keys)
