"""The launches over blocks of keys that queries chose at run time: attention that is causal inside of them, or not.

Neighbouring queries often choose the same blocks, and then a tile of them computes a block together. What few of a tile
chose is computed by the block, for just these queries: many blocks fit one launch, whatever the choices are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import empty_beside, empty_by_token
from ..rows import Matrix
from .configs import ChosenConfig, chosen_config
from .joins import join_keys, join_pieces, join_queries
from .lists import PART, Choices, Own, Rare, Shared, Sharing, ceil_div, grid, up_to_power
from .pieces import copy_seen, forward_pieces

LOG2E = 1.4426950408889634
NONE_SHARED = Sharing(least=64)
"""No tile has so many queries."""


class ChosenHeads(NamedTuple):
    """Query heads and key heads of a batch row, and how many neighbouring key heads choose alike."""

    count: int
    key_heads: int
    alike: int


class Pieces(NamedTuple):
    """What one launch of the backward works on: key heads of batch rows from `first` on, and where it writes."""

    first: int
    lanes: int
    rare: Rare
    dq: Tensor
    dk: Tensor
    dv: Tensor
    part_dk: Tensor
    part_dv: Tensor


@dataclass(frozen=True, eq=False)
class ChosenBlocks(ABC):
    """Query heads [B, H, Q, D], keys [B, G, K, D] and values, and the blocks [B, N, Q, n] that queries chose."""

    q: Tensor
    k: Tensor
    v: Tensor
    indices: Tensor
    size: int
    causal: bool
    scale: float

    turned = False
    """Whether pieces of dq have their columns in the order in which threads hold them."""

    @abstractmethod
    def _forward_tiles(
        self, v: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None, lists: tuple[Shared, Own]
    ) -> None:
        """Writes what queries see of the blocks that their tiles share."""

    @abstractmethod
    def _prepare(self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, ...]:
        """What the backward's pieces need of each query besides its rows."""

    @abstractmethod
    def _backward_pieces(self, grad_out: Tensor, prepared: tuple[Tensor, ...], pieces: Pieces) -> None: ...

    @property
    @abstractmethod
    def sharing(self) -> Sharing:
        """When tiles compute blocks together."""

    def forward(self, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp)."""
        out = empty_by_token(self.q, self.v.shape[3])
        lse = self.q.new_empty(self.q.shape[:3], dtype=torch.float32)
        shared, own = self.choices.shared(self.sharing)
        rare = self.choices.rare(self.sharing, shared.complete)
        self._forward_tiles(self._seen_values(rare), out, lse, sinks, (shared, own))
        if self.sharing.least:
            self._forward_pieces(out, lse, rare)
        return out, lse

    def _seen_values(self, rare: Rare) -> Tensor:
        """v with zeros for keys that stand behind every query that chose their block: whatever lies there would be
        multiplied with zeros."""
        if not self.causal:
            return self.v
        seen = torch.empty_like(self.v, memory_format=torch.contiguous_format)
        grid(copy_seen, self.lanes * self.choices.axes.blocks)(
            Matrix.of(self.v), Matrix.of(seen), rare, self.heads, self.choices.axes,
            SIZE=self.size, VALUE_WIDTH=self.v.shape[3],
        )  # fmt: skip
        return seen

    def _forward_pieces(self, out: Tensor, lse: Tensor, rare: Rare) -> None:
        q, k, v, axes = self.q, self.k, self.v, self.choices.axes
        together = self._together(v.shape[3])
        pieces = self._room(together, v.shape[3])
        piece_lse = torch.empty(pieces.shape[:3], dtype=torch.float32, device=q.device)
        inputs = *map(Matrix.of, (q, k, v)), pieces, piece_lse, rare, self.heads, axes
        for first in range(0, self.lanes, together):
            lanes = min(together, self.lanes - first)
            grid(forward_pieces, lanes * rare.most)(
                *inputs, first, self.scale * LOG2E, SIZE=self.size, PART=PART, **self.group, **self.widths,
                **self.config.pieces,
            )  # fmt: skip
            given = Matrix.of(out), lse, pieces, piece_lse, rare.counts, self.heads, axes, first
            join = self._join_config
            grid(join_pieces, lanes * self._programs(join["ROWS"]))(
                *given, **self.group, VALUE_WIDTH=v.shape[3], **join
            )

    def backward(
        self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv)."""
        q, k, v, axes = self.q, self.k, self.v, self.choices.axes
        rare = self.choices.rare(NONE_SHARED)
        prepared = self._prepare(out, lse, grad_out, grad_lse)
        dq, dk, dv = (empty_beside(x, x.shape[3]) for x in (q, k, v))
        together = self._together(q.shape[3], rare.most)
        pieces = self._room(together, q.shape[3])
        parts = [self._parts(together * rare.most, x.shape[3]) for x in (k, v)]
        join, keys = self._join_config, min(16, self.size)
        for first in range(0, self.lanes, together):
            lanes = min(together, self.lanes - first)
            self._backward_pieces(grad_out, prepared, Pieces(first, lanes, rare, pieces, dk, dv, *parts))
            given = Matrix.of(dq), pieces, rare.counts, self.heads, axes, first, self.scale
            grid(join_queries, lanes * self._programs(join["ROWS"]))(
                *given,
                **self.group,
                WIDTH=q.shape[3],
                TURNED=self.turned,
                **join,
            )
            grid(join_keys, lanes * axes.blocks * (self.size // keys))(
                Matrix.of(dk), Matrix.of(dv), *parts, rare, self.heads, axes, first,
                SIZE=self.size, PART=PART, KEYS=keys, **self.widths,
            )  # fmt: skip
        return dq, dk, dv

    @cached_property
    def choices(self) -> Choices:
        """Who chose what."""
        return Choices.of(self.indices, self.size, self.k.shape[2], self.tile, causal=self.causal)

    @property
    def config(self) -> ChosenConfig:
        """Tiles for these tensors."""
        return chosen_config(self.q.dtype, max(self.q.shape[3], self.v.shape[3]))

    @property
    def repeats(self) -> int:
        """Query heads of a key head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def lanes(self) -> int:
        """Key heads of all batch rows."""
        return self.k.shape[0] * self.k.shape[1]

    @property
    def heads(self) -> ChosenHeads:
        """Heads as kernels are told of them."""
        return ChosenHeads(self.q.shape[1], self.k.shape[1], self.k.shape[1] // self.indices.shape[1])

    @property
    def tile(self) -> int:
        """Queries of a tile."""
        return self.config.together(up_to_power(self.repeats))

    @property
    def group(self) -> dict[str, int]:
        """What kernels are compiled for besides tiles and widths."""
        return {"CHOSEN": self.indices.shape[3], "REPEATS": self.repeats}

    @property
    def widths(self) -> dict[str, int]:
        """Widths of keys and of values."""
        return {"WIDTH": self.q.shape[3], "VALUE_WIDTH": self.v.shape[3]}

    @property
    def _join_config(self) -> dict[str, Any]:
        rows = max(self.config.join["ROWS"], up_to_power(self.repeats))
        return {**self.config.join, "ROWS": rows}

    def _room(self, lanes: int, width: int) -> Tensor:
        return self.q.new_empty(lanes, self.q.shape[2] * self.indices.shape[3], self.repeats, width)

    def _together(self, width: int, items: int = 0) -> int:
        """Key heads of a batch row whose pieces, and parts of the gradients of so many items' keys and values, are in
        memory at a time."""
        of_pieces = self.q.shape[2] * self.indices.shape[3] * self.repeats * width * self.q.element_size()
        of_parts = 4 * items * self.size * sum(map(_padded, self.widths.values()))
        return max(1, min(self.lanes, self.config.scratch // max(1, of_pieces, of_parts)))

    def _programs(self, rows: int) -> int:
        """Programs of so many rows for all queries of a key head."""
        return ceil_div(self.q.shape[2], rows // up_to_power(self.repeats))

    def _parts(self, items: int, width: int) -> Tensor:
        return torch.empty(items, self.size, _padded(width), dtype=torch.float32, device=self.q.device)


def _padded(width: int) -> int:
    """Columns of a part of a gradient, as a tile has them."""
    return max(16, up_to_power(width))
