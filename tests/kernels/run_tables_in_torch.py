"""What `kernels/run_tables.py` does, in PyTorch and as masks: the tests' reference, and a stand-in without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.run_tables import Launch, Order
from gossamer.kernels.spans import Span


def places(order: Order) -> Tensor:
    """[n] the positions of an order's places."""
    index = torch.arange(order.count) if order.index is None else order.index
    return index + order.offset


def inside(positions: Tensor, within: Tensor) -> Tensor:
    """[B, n] which positions lie within each sequence."""
    first, last = within.clamp(min=0).T[..., None]
    return (positions >= first) & (positions < last)


class Sequences:
    """What each sequence sees of a span: `seen` [B, n, m]."""

    def __init__(self, span: Span, within: Tensor):
        queries, keys = Order(span.queries, span.query_count, span.offset), Order(span.keys, span.key_count, 0)
        place = torch.arange(span.key_count)
        runs = (place >= span.start[:, None]) & (place < span.stop[:, None])
        self.seen = inside(places(queries), within)[:, :, None] & inside(places(keys), within)[:, None] & runs


def confined(
    runs: tuple[Tensor, Tensor], own: Order, other: Order, within: Tensor, *, keys: int, step: int, launch: Launch
) -> tuple[Tensor, Tensor]:
    low, high = runs
    begin = within[:, :1].clamp(0, keys)
    end = torch.maximum(within[:, 1:].clamp(0, keys), begin)
    position, width = places(own), 2 * keys + own.count + other.count + 2
    rising = places(other) % step * width + places(other)
    first, last = (torch.searchsorted(rising, position % step * width + x) for x in (begin, end))
    bottom, top = torch.where(position < end, first, last), torch.where(position < begin, first, last)
    return low.clamp(bottom, top).int(), high.clamp(bottom, top).int()


def turned(start: Tensor, stop: Tensor, keys: int, *, launch: Launch) -> tuple[Tensor, Tensor]:
    key = torch.arange(keys, dtype=start.dtype).expand(start.shape[0], -1).contiguous()
    first = torch.searchsorted(stop.contiguous(), key, right=True, out_int32=True)
    return first, torch.maximum(first, torch.searchsorted(start.contiguous(), key, right=True, out_int32=True))
