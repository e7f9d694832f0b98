"""`GlobalTokens`: the few tokens of each sequence that see all and are seen by all (Longformer, arXiv 2004.05150)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor


class Beyond(NamedTuple):
    """The chosen tokens outside each position's window, as a run of a list."""

    entries: Int64[Tensor, "B 2m"]
    """The list, of entries of `GlobalTokens.index`: a row's `counts[b]`, and all of them again."""
    start: Int[Tensor, "B N"]
    stop: Int[Tensor, "B N"]
    turn: Int64[Tensor, " N"] | None
    """The positions in the order in which `start` and `stop` are given; None: ascending."""
    back: Int64[Tensor, " N"] | None
    """Where each position stands in `turn`."""


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
    slots: Int64[Tensor, " T"] | None
    """Where in `index`, flattened, the chosen ones stand; None: everywhere."""
    places: Int64[Tensor, " T"]
    """Where in the flattened batch they stand."""
    flat: Int64[Tensor, " Bm"]
    """Where in the flattened batch all entries of `index` stand."""
    mask: Bool[Tensor, "B N"]
    """Which positions are chosen."""
    _found: dict[tuple[int, int], Beyond] = field(default_factory=dict, repr=False)
    _outside: dict[tuple[int, tuple[int, ...], bool], Tensor] = field(default_factory=dict, repr=False)
    _slices: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, mask: Bool[Tensor, "B N"]) -> Self:
        """The tokens where `mask` is True. Waits for the device once, to learn how many there are.

        Raises:
            ValueError: `mask` is no bool tensor [batch, length].
        """
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ValueError(f"GlobalTokens: mask is {mask.dtype} {list(mask.shape)}; give bool [batch, length]")
        known = mask.cpu()  # waits; what follows is too little work for a device
        rows, length = known.shape
        counts = known.sum(1, dtype=torch.int32)
        most = max(counts.tolist(), default=0)
        if int(counts.sum()) == rows * most:
            index, slots = known.nonzero()[:, 1].view(rows, most), None
        else:
            index = (~known).to(torch.uint8).argsort(stable=True)[:, :most]
            slots = (torch.arange(most) < counts[:, None]).flatten().nonzero().flatten().to(mask.device)
        both = torch.stack([index, index + length * torch.arange(rows)[:, None]]).to(mask.device)
        index, flat = both[0], both[1].flatten()
        # A tensor of its own: compilers refuse a function that is given one twice.
        places = flat.view(-1) if slots is None else flat[slots]
        return cls(index, counts.to(mask.device), slots, places, flat, mask.clone())

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.mask.shape[1]

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

    def chosen_of(self, rows: Float[Tensor, "B m ..."]) -> Float[Tensor, "T ..."]:
        """Those of `rows` that were chosen, one for each of `places`."""
        rows = rows.flatten(0, 1)
        return rows if self.slots is None else rows.index_select(0, self.slots)

    def put(self, rows: Float[Tensor, "B m E"], x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """`x` with `rows` in place of its chosen rows."""
        placed = x.flatten(0, 1).index_copy(0, self.places, self.chosen_of(rows).to(x.dtype))
        return placed.view_as(x)

    def beyond(self, reach: int, step: int) -> Beyond:
        """For each position, which of the chosen stand outside its window. Made once for all layers that ask.

        A window holds the positions at most `reach` away whose distance is a multiple of `step`. Sorted by (position
        modulo `step`, position), the chosen inside it are one run, so those outside are what follows that run and
        what stands before it: one run of the list written twice. Where positions take their turns in the same order,
        neither of its ends ever falls.
        """
        if (reach, step) not in self._found:
            with torch.inference_mode(False):  # a layer that learns may be the next to ask
                self._found[reach, step] = self._beyond(reach, step)
        return self._found[reach, step]

    def outside(self, side: int, steps: tuple[int, ...], causal: bool) -> Float[Tensor, "B H m N"]:
        """0 where a position sees a chosen token outside its window, else minus infinity. Made once for all layers.

        A window holds `side` positions before and behind, each `step` from the next: one step for each head, or one
        for all. Causal, no position sees a later one.
        """
        if (side, steps, causal) not in self._outside:
            with torch.inference_mode(False):
                self._outside[side, steps, causal] = self._made_outside(side, steps, causal)
        return self._outside[side, steps, causal]

    def slices(self, heads: int, width: int, dtype: torch.dtype) -> Float[Tensor, "H E"]:
        """Ones where each head's slice of a token is, and zeros elsewhere. Made once for all layers."""
        if (heads, width, dtype) not in self._slices:
            with torch.inference_mode(False):
                eye = torch.eye(heads, dtype=dtype, device=self.index.device)
                self._slices[heads, width, dtype] = eye[..., None].expand(-1, -1, width).flatten(1)
        return self._slices[heads, width, dtype]

    def earlier(self, reach: int) -> Int[Tensor, "B N"]:
        """For each position, how many of the chosen stand more than `reach` before it: the first ones of `index`."""
        return self._count(self._codes(1), (self._positions - reach).clamp(min=0), below=True)

    def distances(self) -> Int64[Tensor, "B N m"]:
        """How far each position stands behind each entry of `index`."""
        return self._positions[:, None] - self.index[:, None]

    def _beyond(self, reach: int, step: int) -> Beyond:
        chosen, order = self._codes(step).sort(1)
        again = torch.arange(2 * self.most, device=order.device) % self.counts.clamp(min=1)[:, None]
        positions, turn, back = self._positions, None, None
        if step > 1:
            positions = turn = (positions % step * self.length + positions).argsort()
            back = turn.argsort()
        offset = positions % step * self.length
        first, last = (positions - reach).clamp(min=0), (positions + reach).clamp(max=self.length - 1)
        start = self._count(chosen, offset + last, below=False)
        stop = self.counts[:, None] + self._count(chosen, offset + first, below=True)
        return Beyond(order.gather(1, again), start, stop, turn, back)

    def _made_outside(self, side: int, steps: tuple[int, ...], causal: bool) -> Float[Tensor, "B H m N"]:
        away = self._positions - self.index[..., None]  # [B, m, N]
        near = [_near(away, side, step) for step in steps]
        hidden = near[0][:, None] if len(near) == 1 else torch.stack(near, 1)
        if self.slots is not None:
            hidden = hidden | ~self.real[:, None, :, None]
        hidden = hidden | (away < 0)[:, None] if causal else hidden
        return torch.where(hidden, -torch.inf, 0.0)

    @property
    def _positions(self) -> Int64[Tensor, " N"]:
        return torch.arange(self.length, device=self.index.device)

    def _codes(self, step: int) -> Int64[Tensor, "B m"]:
        """One number for each entry, ascending as (position modulo `step`, position); the greatest where not chosen."""
        codes = self.index % step * self.length + self.index if step > 1 else self.index
        return codes.masked_fill(~self.real, step * self.length)

    def _count(self, chosen: Tensor, codes: Tensor, below: bool) -> Int[Tensor, "B N"]:
        """How many of the chosen are below (or up to) each code."""
        codes = codes.expand(len(chosen), -1).contiguous()
        return torch.searchsorted(chosen.contiguous(), codes, right=not below, out_int32=True)


def _near(away: Tensor, side: int, step: int) -> Bool[Tensor, "B m N"]:
    near = away.abs() <= side * step
    return near if step == 1 else near & (away % step == 0)
