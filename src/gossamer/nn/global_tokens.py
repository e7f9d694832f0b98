"""`GlobalTokens`: the few tokens of each sequence that see all and are seen by all (Longformer, arXiv 2004.05150)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GlobalTokens:
    """Which tokens were chosen, for every row of a batch: another number in each. One serves all layers.

    >>> GlobalTokens.of(torch.tensor([[True, False, True], [False, True, False]])).counts.tolist()
    [2, 1]
    """

    index: Int64[Tensor, "B m"]
    """Their positions, ascending; from `counts` on, positions that were not chosen, each once."""
    counts: Int[Tensor, " B"]
    """How many each row has (int32)."""
    slots: Int64[Tensor, " T"]
    """Where in `index`, flattened, the chosen ones stand."""
    places: Int64[Tensor, " T"]
    """Where in the flattened batch they stand."""
    length: int
    """Positions of a row."""

    @classmethod
    def of(cls, mask: Bool[Tensor, "B N"]) -> Self:
        """The tokens where `mask` is True. Waits for the device once, to learn how many there are.

        Raises:
            ValueError: `mask` is no bool tensor [batch, length].
        """
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ValueError(f"GlobalTokens: mask is {mask.dtype} {list(mask.shape)}; give bool [batch, length]")
        counts = mask.sum(1, dtype=torch.int32)
        known = counts.tolist()
        most, (rows, length) = max(known, default=0), mask.shape
        index = _true_first(mask)[:, :most]
        real = torch.arange(most, device=mask.device) < counts[:, None]  # [B, m]
        slots = _true_first(real.flatten())[: sum(known)]
        flat = index + length * torch.arange(rows, device=mask.device)[:, None]
        return cls(index, counts, slots, flat.flatten()[slots], length)

    @property
    def most(self) -> int:
        """The most that one row has."""
        return self.index.shape[1]

    @property
    def real(self) -> Bool[Tensor, "B m"]:
        """Which entries of `index` were chosen."""
        return torch.arange(self.most, device=self.index.device) < self.counts[:, None]

    def rows_of(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B m E"]:
        """The chosen rows of `x`."""
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[2]))

    def put(self, rows: Float[Tensor, "B m E"], x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """`x` with `rows` in place of its chosen rows."""
        placed = x.flatten(0, 1).index_copy(0, self.places, rows.flatten(0, 1)[self.slots].to(x.dtype))
        return placed.view_as(x)

    def twice(self, step: int) -> Int64[Tensor, "B 2m"]:
        """Entries of `index` in the order of (position modulo `step`, position), and all of them once more.

        Row b has its `counts[b]` entries at 0 ... counts[b] - 1 and again from counts[b] on; what follows is any.
        """
        order = self._codes(step).argsort(1)
        again = torch.arange(2 * self.most, device=order.device) % self.counts.clamp(min=1)[:, None]
        return order.gather(1, again)

    def beyond(self, reach: int, step: int) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"]]:
        """For each position, which entries of `twice(step)` are chosen and outside its window: start and stop of a run.

        A window holds the positions at most `reach` away whose distance is a multiple of `step`. Sorted by (position
        modulo `step`, position), those inside are one run of the chosen, so those outside are what follows it and
        what stands before it: one run of the list written twice. Positions are asked in that same order
        (`in_turn(step)`), in which neither end of the run ever falls.
        """
        chosen = self._codes(step).sort(1).values
        positions = self.in_turn(step)
        turn = positions % step * self.length
        first, last = (positions - reach).clamp(min=0), (positions + reach).clamp(max=self.length - 1)
        before = self._count(chosen, turn + first, below=True)
        until = self._count(chosen, turn + last, below=False)
        return until, self.counts[:, None] + before

    def earlier(self, reach: int) -> Int[Tensor, "B N"]:
        """For each position, how many of the chosen stand more than `reach` before it."""
        positions = torch.arange(self.length, device=self.index.device)
        return self._count(self._codes(1), (positions - reach).clamp(min=0), below=True)

    def in_turn(self, step: int) -> Int64[Tensor, " N"]:
        """The positions in the order of (position modulo `step`, position)."""
        positions = torch.arange(self.length, device=self.index.device)
        return positions if step == 1 else (positions % step * self.length + positions).argsort()

    def distances(self) -> Int64[Tensor, "B N m"]:
        """How far each position stands behind each entry of `index`."""
        return torch.arange(self.length, device=self.index.device)[:, None] - self.index[:, None]

    def _codes(self, step: int) -> Int64[Tensor, "B m"]:
        """One number for each entry, ascending as (position modulo `step`, position); the greatest where not chosen."""
        codes = self.index % step * self.length + self.index if step > 1 else self.index
        return codes.masked_fill(~self.real, step * self.length)

    def _count(self, chosen: Tensor, codes: Tensor, below: bool) -> Int[Tensor, "B N"]:
        """How many of the chosen are below (or up to) each code."""
        codes = codes.expand(len(chosen), -1).contiguous()
        return torch.searchsorted(chosen.contiguous(), codes, right=not below, out_int32=True)


def _true_first(mask: Bool[Tensor, "*B N"]) -> Int64[Tensor, "*B N"]:
    """Positions where the last axis is True, ascending, and then the others."""
    return (~mask).to(torch.uint8).argsort(stable=True, dim=-1)
