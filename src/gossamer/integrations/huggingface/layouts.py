"""Two ways to lay out a block of queries beside the keys they chose, so that scores are one matrix product.

Keys are gathered, for each query its own: the work follows the number of chosen keys, at the speed of memory. Or all
keys stand there once and the others are hidden: more work, at the speed of matrix products. In either one, queries are
[B, G, P, R, D] and keys [B, G, P, n, D]: the R rows of a part meet the n keys of that part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .selection import Selection

ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""About so many numbers a block holds: few enough for a small part of memory, enough to be worth a call."""

GATHERING = 64
"""A key that is gathered for one query head costs as much as so many that stand there; more heads share the cost."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the rows of a block meet."""

    k: Tensor
    v: Tensor
    visible: Tensor
    """Bools that broadcast to [B, G, P, R, n]."""
    place: Tensor | None = None
    """Where the keys stand among all [B · G · K]; None where they are all of them."""

    def add(self, total: Tensor, part: Tensor) -> None:
        """Adds what is due to the block's keys, [B, G, P, n, D], to what is due to all, [B, G, K, D]."""
        if self.place is None:
            total.add_(part[:, :, 0])
            return
        every, place, part = total.flatten(0, 2), self.place.flatten(), part.flatten(0, 3).to(total.dtype)
        if total.is_cuda:  # it sorts first; index_add_ there adds in whatever order threads arrive
            every.index_put_((place,), part, accumulate=True)
        else:
            every.index_add_(0, place, part)


@dataclass(frozen=True, eq=False)
class Layout:
    """How the queries of a call meet their keys, `step` at a time."""

    selection: Selection
    heads: int
    key_heads: int
    step: int
    gathers: bool

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, selection: Selection) -> Layout:
        """The one that costs less, by lengths and heads alone: nobody waits for a device to say what is chosen."""
        batch, heads, _, width = q.shape
        _, key_heads, keys, _ = k.shape
        device = "cuda" if q.is_cuda else "cpu"
        gathers = selection.size * max(GATHERING * key_heads // heads, 2) < keys
        gathered = batch * key_heads * selection.size * (width + v.shape[3])
        numbers = gathered if gathers else 2 * batch * heads * keys
        return cls(selection, heads, key_heads, max(ELEMENTS[device] // max(numbers, 1), 1), gathers)

    def rows(self, x: Tensor) -> Tensor:
        """[B, H, b, D] of a block's queries as [B, G, P, R, D]."""
        x = x.unflatten(1, (self.key_heads, -1))  # [B, G, H / G, b, D]
        return x.transpose(2, 3) if self.gathers else x.flatten(2, 3)[:, :, None]

    def queries(self, x: Tensor) -> Tensor:
        """The reverse of `rows`."""
        if self.gathers:
            return x.transpose(2, 3).flatten(1, 2)
        return x[:, :, 0].unflatten(2, (self.heads // self.key_heads, -1)).flatten(1, 2)

    def seen(self, k: Tensor, v: Tensor, first: int, last: int) -> Seen:
        """What queries `first … last - 1` meet."""
        if self.gathers:
            return self._gathered(k, v, first, last)
        visible = self.selection.strip(first, last, k.shape[2])
        visible = visible.repeat_interleave(self.heads // visible.shape[1], dim=1)  # [B, H, b, K]
        return Seen(k[:, :, None], v[:, :, None], self.rows(visible))

    def _gathered(self, k: Tensor, v: Tensor, first: int, last: int) -> Seen:
        batch, key_heads, keys, _ = k.shape
        chosen, visible = self.selection.distinct(first, last, keys)
        alike = key_heads // chosen.shape[1]
        chosen, visible = (x.repeat_interleave(alike, dim=1) for x in (chosen, visible))  # [B, G, b, n]
        sequence = torch.arange(batch, device=k.device)[:, None, None, None]
        head = torch.arange(key_heads, device=k.device)[:, None, None]
        place = (sequence * key_heads + head) * keys + chosen
        return Seen(k[sequence, head, chosen], v[sequence, head, chosen], visible[..., None, :], place)
