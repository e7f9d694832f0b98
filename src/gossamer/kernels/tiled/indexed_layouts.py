"""Two ways to lay out a block of queries beside the keys they chose, so that scores are one matrix product.

Keys are gathered, for each query its own: the work follows the number of chosen keys, at the speed of memory. Or all
keys stand there once and the others are hidden: more work, at the speed of matrix products. In either one, queries are
[B, G, P, R, D] and keys [B, G, P, n, D]: the R rows of a part meet the n keys of that part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..indexed import Inputs

ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""About so many numbers a block holds: few enough for a small part of memory, enough to be worth a call."""

GATHERING = 64
"""A key that is gathered for one query head costs as much as so many that stand there; more heads share the cost."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the rows of a block meet; zeros where no row sees it."""

    k: Tensor
    v: Tensor
    visible: Tensor
    """Bools that broadcast to [B, G, P, R, n]."""
    chosen: Tensor | None = None
    """The number of each key, [B, G, P, n]; None where they are all of them."""

    @cached_property
    def blind(self) -> Tensor:
        """[B, G, P, R or 1, 1]: which rows see nothing."""
        return ~self.visible.any(-1, keepdim=True)

    def keys(self, count: int) -> Tensor:
        """The number of each key, of `count` in all; broadcasts to [B, G, P, R, n]."""
        return torch.arange(count, device=self.k.device) if self.chosen is None else self.chosen[..., None, :]

    def add(self, total: Tensor, part: Tensor) -> None:
        """Adds what is due to the block's keys, [B, G, P, n, D], to what is due to all, [B, G, K, D]."""
        if self.chosen is None:
            total.add_(part[:, :, 0])
            return
        batch, key_heads, keys, _ = total.shape
        lane = torch.arange(batch * key_heads, device=total.device).view(batch, key_heads, 1, 1)
        every, place = total.flatten(0, 2), (self.chosen + lane * keys).flatten()
        part = part.flatten(0, 3).to(total.dtype)
        if total.is_cuda:  # it sorts first; index_add_ there adds in whatever order threads arrive
            every.index_put_((place,), part, accumulate=True)
        else:
            every.index_add_(0, place, part)


@dataclass(frozen=True, eq=False)
class Layout:
    """How the queries of a call meet their keys, `step` at a time."""

    heads: int
    key_heads: int
    step: int
    gathers: bool

    @classmethod
    def of(cls, given: Inputs) -> Layout:
        """The one that costs less, by lengths and heads alone: nobody waits for a device to say what is chosen."""
        batch, heads, _, width = given.q.shape
        _, key_heads, keys, _ = given.k.shape
        size, device = given.selection.size, "cuda" if given.q.is_cuda else "cpu"
        gathers = size * max(GATHERING * key_heads // heads, 2) < keys
        gathered = batch * key_heads * size * (width + given.value_width)
        numbers = gathered if gathers else 2 * batch * heads * keys
        return cls(heads, key_heads, max(ELEMENTS[device] // max(numbers, 1), 1), gathers)

    def rows(self, x: Tensor) -> Tensor:
        """[B, H, b, D] of a block's queries as [B, G, P, R, D]."""
        x = x.unflatten(1, (self.key_heads, -1))  # [B, G, H / G, b, D]
        return x.transpose(2, 3) if self.gathers else x.flatten(2, 3)[:, :, None]

    def queries(self, x: Tensor) -> Tensor:
        """The reverse of `rows`."""
        if self.gathers:
            return x.transpose(2, 3).flatten(1, 2)
        return x[:, :, 0].unflatten(2, (self.heads // self.key_heads, -1)).flatten(1, 2)

    def seen(self, given: Inputs, first: int, last: int) -> Seen:
        """What queries `first … last - 1` meet."""
        if self.gathers:
            return self._gathered(given, first, last)
        visible = given.selection.strip(first, last, given.k.shape[2])
        visible = visible.repeat_interleave(self.heads // visible.shape[1], dim=1)  # [B, H, b, K]
        visible = self.rows(visible)
        unseen = ~visible.any(-2)[..., None]
        k, v = (x[:, :, None].masked_fill(unseen, 0.0) for x in (given.k, given.values))
        return Seen(k, v, visible)

    def _gathered(self, given: Inputs, first: int, last: int) -> Seen:
        batch, key_heads, keys, _ = given.k.shape
        chosen, visible = given.selection.distinct(first, last, keys)
        alike = key_heads // chosen.shape[1]
        chosen, visible = (x.repeat_interleave(alike, dim=1) for x in (chosen, visible))  # [B, G, b, n]
        sequence = torch.arange(batch, device=chosen.device)[:, None, None, None]
        head = torch.arange(key_heads, device=chosen.device)[:, None, None]
        k = given.k[sequence, head, chosen].masked_fill_(~visible[..., None], 0.0)
        if given.v is None:
            v = k[..., : given.value_width]
        else:
            v = given.v[sequence, head, chosen].masked_fill_(~visible[..., None], 0.0)
        return Seen(k, v, visible[..., None, :], chosen)
