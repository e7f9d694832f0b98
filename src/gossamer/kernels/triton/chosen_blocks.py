"""The launches over blocks of keys that queries chose at run time: attention that is causal inside of them, or not.

Neighbouring queries often choose the same blocks, and then a tile of them computes a block together. What few of a tile
chose is computed by the block, for just these queries: many blocks fit one launch, whatever the choices are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..layout import empty_beside, empty_results
from . import chosen_backward, chosen_forward
from .chosen_configs import ChosenConfig, chosen_config
from .chosen_lists import PART, Choices, Rare
from .operands import LOG2E, Matrix, Vector


class ChosenHeads(NamedTuple):
    """Query heads and key heads of a batch row, and how many neighbouring key heads choose alike."""

    count: int
    key_heads: int
    alike: int


@dataclass(frozen=True, eq=False)
class ChosenBlocks:
    """Query heads [B, H, Q, D], keys [B, G, K, D] and values, and the blocks [B, N, Q, n] that queries chose."""

    q: Tensor
    k: Tensor
    v: Tensor
    indices: Tensor
    size: int
    causal: bool
    scale: float

    def forward(self, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp)."""
        q, k, v, config = self.q, self.k, self.v, self.config
        out, lse = empty_results(q, v)
        choices = self._choices
        shared, rare = choices.shared(self._least), choices.rare(self._least)
        tensors = *map(Matrix.of, (q, k, v, out)), lse, sinks, shared, self._heads, choices.axes, self.scale * LOG2E
        programs = shared.tiles * self._lanes
        chosen_forward.forward_tiles[programs,](
            *tensors, SIZE=self.size, TILE=self._tile, REPEATS=self._repeats, **self._widths, **config.tiles
        )
        self._forward_pieces(out, lse, rare)
        return out, lse

    def _forward_pieces(self, out: Tensor, lse: Tensor, rare: Rare) -> None:
        q, k, v, axes = self.q, self.k, self.v, self._choices.axes
        choices, together = q.shape[2] * self.indices.shape[3], self._together(v.shape[3])
        pieces = q.new_empty(together, choices, self._repeats, v.shape[3])
        piece_lse = torch.empty(pieces.shape[:3], dtype=torch.float32, device=q.device)
        inputs = *map(Matrix.of, (q, k, v)), pieces, piece_lse, rare, self._heads, axes
        for first in range(0, self._lanes, together):
            lanes = min(together, self._lanes - first)
            chosen_forward.forward_pieces[lanes * rare.most,](
                *inputs, first, self.scale * LOG2E, SIZE=self.size, PART=PART, **self._group, **self._widths,
                **self.config.pieces,
            )  # fmt: skip
            given = Matrix.of(out), lse, pieces, piece_lse, rare.used, self._heads, axes, first
            launch = chosen_forward.join_pieces[lanes * self._rows_of(self.config.join["ROWS"]),]
            launch(*given, **self._group, VALUE_WIDTH=v.shape[3], **self.config.join)

    def backward(
        self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(dq, dk, dv, delta [B, H, Q]: the sums of grad_out · out less the gradient of the log-sum-exp)."""
        q, k, v = self.q, self.k, self.v
        axes = self._choices.axes
        rare = self._choices.rare(self._tile + 1)
        peaks, deltas = (torch.empty(lse.shape, dtype=torch.float32, device=q.device) for _ in range(2))
        rows = 64
        given = Matrix.of(out), Matrix.of(grad_out), Vector.of(lse), None if grad_lse is None else Vector.of(grad_lse)
        programs = q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], rows)
        chosen_backward.prepare[programs,](
            *given, peaks, deltas, q.shape[2], self._heads, ROWS=rows, VALUE_WIDTH=v.shape[3]
        )
        dq, dk, dv = (empty_beside(x, x.shape[3]) for x in (q, k, v))
        together = self._together(q.shape[3])
        pieces = q.new_empty(together, q.shape[2] * self.indices.shape[3], self._repeats, q.shape[3])
        parts = [self._parts(together * rare.most, x.shape[3]) for x in (k, v)]
        inputs = *map(Matrix.of, (q, k, v, grad_out)), peaks, deltas, pieces, Matrix.of(dk), Matrix.of(dv), *parts
        for first in range(0, self._lanes, together):
            lanes = min(together, self._lanes - first)
            lists = rare, self._heads, axes, first
            chosen_backward.backward_pieces[lanes * rare.most,](
                *inputs, *lists, self.scale * LOG2E, self.scale, SIZE=self.size, PART=PART, **self._group,
                **self._widths, **self.config.backward,
            )  # fmt: skip
            launch = chosen_backward.join_queries[lanes * self._rows_of(self.config.join["ROWS"]),]
            given = Matrix.of(dq), pieces, rare.used, self._heads, axes, first, self.scale
            launch(*given, **self._group, WIDTH=q.shape[3], TURNED=False, **self.config.join)
            keys = min(16, self.size)
            launch = chosen_backward.join_keys[lanes * axes.blocks * (self.size // keys),]
            launch(Matrix.of(dk), Matrix.of(dv), *parts, *lists, SIZE=self.size, PART=PART, KEYS=keys, **self._widths)
        return dq, dk, dv, deltas

    @cached_property
    def _choices(self) -> Choices:
        return Choices.of(self.indices, self.size, self.k.shape[2], self._tile, causal=self.causal)

    @property
    def config(self) -> ChosenConfig:
        """Tiles for these tensors."""
        return chosen_config(self.q.dtype, max(self.q.shape[3], self.v.shape[3]))

    @property
    def _repeats(self) -> int:
        return self.q.shape[1] // self.k.shape[1]

    @property
    def _lanes(self) -> int:
        return self.k.shape[0] * self.k.shape[1]

    @property
    def _heads(self) -> ChosenHeads:
        return ChosenHeads(self.q.shape[1], self.k.shape[1], self.k.shape[1] // self.indices.shape[1])

    @property
    def _tile(self) -> int:
        """Queries of a tile: their rows fill the matrix instructions, and their bits fit a word."""
        return max(1, min(32, self.config.rows // triton.next_power_of_2(self._repeats)))

    @property
    def _least(self) -> int:
        """How many queries of a tile make a block worth computing for all."""
        return max(1, self._tile // self.config.share)

    @property
    def _group(self) -> dict[str, int]:
        return {"CHOSEN": self.indices.shape[3], "REPEATS": self._repeats}

    @property
    def _widths(self) -> dict[str, int]:
        return {"WIDTH": self.q.shape[3], "VALUE_WIDTH": self.v.shape[3]}

    def _together(self, width: int) -> int:
        """Key heads of a batch row whose pieces are in memory at a time."""
        bytes_of_one = self.q.shape[2] * self.indices.shape[3] * self._repeats * width * self.q.element_size()
        return max(1, min(self._lanes, self.config.scratch // max(1, bytes_of_one)))

    def _rows_of(self, rows: int) -> int:
        """Programs of so many rows for all queries of a key head."""
        return triton.cdiv(self.q.shape[2], rows // triton.next_power_of_2(self._repeats))

    def _parts(self, items: int, width: int) -> Tensor:
        padded = max(16, triton.next_power_of_2(width))
        return torch.empty(items, self.size, padded, dtype=torch.float32, device=self.q.device)
