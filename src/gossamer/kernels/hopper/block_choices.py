"""Chosen blocks by Hopper's own instructions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..block_choices.blocks import ChosenBlocks, Pieces
from ..block_choices.lists import PART, Own, Shared, Sharing, ceil_div, grid
from ..rows import Matrix, Vector
from .block_choices_auxiliary import prepare_auxiliary
from .block_choices_backward import backward_pieces
from .block_choices_forward import forward_tiles, slots_of
from .descriptors import addressable
from .ring import AUX

PARTS = 2
"""Consumers, each with half of a tile's queries."""


class HopperChosen(ChosenBlocks):
    """Of addressable tensors."""

    turned = True

    @property
    def sharing(self) -> Sharing:
        """Whole tiles compute what is cheaper so, as it was measured on an H200."""
        slots = slots_of(self.q.shape[3], self.v.shape[3])
        return Sharing(max(1, self.tile // 16), PARTS, min(4, slots - 1), weight=3)

    def _forward_tiles(
        self, v: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None, lists: tuple[Shared, Own]
    ) -> None:
        tensors = (self.q, self.k, addressable(v)), out, lse, sinks
        forward_tiles(*tensors, lists, alike=self.heads.alike, causal=self.causal, scale=self.scale)

    def _prepare(self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, ...]:
        q, rows = self.q, 64
        aux = torch.empty(*lse.shape, AUX.value, dtype=torch.bfloat16, device=q.device)
        given = Matrix.of(out), Matrix.of(grad_out), Vector.of(lse), None if grad_lse is None else Vector.of(grad_lse)
        programs = q.shape[0] * q.shape[1] * ceil_div(q.shape[2], rows)
        grid(prepare_auxiliary, programs)(
            *given,
            aux,
            q.shape[2],
            self.heads,
            self.scale,
            ROWS=rows,
            VALUE_WIDTH=out.shape[3],
        )
        return (aux,)

    def _backward_pieces(self, grad_out: Tensor, prepared: tuple[Tensor, ...], pieces: Pieces) -> None:
        inputs = *map(Matrix.of, (self.q, self.k, self.v, addressable(grad_out))), *prepared, pieces.dq
        results = Matrix.of(pieces.dk), Matrix.of(pieces.dv), pieces.part_dk, pieces.part_dv
        grid(backward_pieces, pieces.lanes * pieces.rare.most)(
            *inputs, *results, pieces.rare, self.heads, self.choices.axes, pieces.first, self.scale,
            PART=PART, **self.group, **self.widths, num_warps=4,
        )  # fmt: skip
