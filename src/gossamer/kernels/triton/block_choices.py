"""Chosen blocks by portable kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..block_choices.blocks import LOG2E, ChosenBlocks, Pieces
from ..block_choices.lists import PART, Own, Shared, Sharing, ceil_div, grid
from ..rows import Matrix, Vector
from .block_choices_backward import backward_pieces, prepare
from .block_choices_forward import forward_tiles


class TritonChosen(ChosenBlocks):
    """On any GPU that Triton compiles for."""

    @property
    def sharing(self) -> Sharing:
        """Whole tiles compute a block that a quarter of their queries chose, and few others."""
        return Sharing(max(1, self.tile // self.config.share), weight=8)

    def _forward_tiles(
        self, v: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None, lists: tuple[Shared, Own]
    ) -> None:
        shared, _ = lists
        tensors = *map(Matrix.of, (self.q, self.k, v, out)), lse, sinks
        grid(forward_tiles, shared.tiles * self.lanes)(
            *tensors, shared, self.heads, self.choices.axes, self.scale * LOG2E,
            SIZE=self.size, TILE=self.tile, REPEATS=self.repeats, **self.widths, **self.config.tiles,
        )  # fmt: skip

    def _prepare(self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, ...]:
        q, rows = self.q, 64
        peaks, deltas = (torch.empty(lse.shape, dtype=torch.float32, device=q.device) for _ in range(2))
        given = Matrix.of(out), Matrix.of(grad_out), Vector.of(lse), None if grad_lse is None else Vector.of(grad_lse)
        programs = q.shape[0] * q.shape[1] * ceil_div(q.shape[2], rows)
        grid(prepare, programs)(*given, peaks, deltas, q.shape[2], self.heads, ROWS=rows, VALUE_WIDTH=out.shape[3])
        return peaks, deltas

    def _backward_pieces(self, grad_out: Tensor, prepared: tuple[Tensor, ...], pieces: Pieces) -> None:
        inputs = *map(Matrix.of, (self.q, self.k, self.v, grad_out)), *prepared, pieces.dq
        results = Matrix.of(pieces.dk), Matrix.of(pieces.dv), pieces.part_dk, pieces.part_dv
        grid(backward_pieces, pieces.lanes * pieces.rare.most)(
            *inputs, *results, pieces.rare, self.heads, self.choices.axes, pieces.first, self.scale * LOG2E,
            self.scale, SIZE=self.size, PART=PART, **self.group, **self.widths, **self.config.backward,
        )  # fmt: skip
