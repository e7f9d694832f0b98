"""Chosen blocks on Hopper."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..layout import empty_beside, empty_results
from ..triton import chosen_backward as portable
from ..triton.chosen_blocks import ChosenBlocks
from ..triton.chosen_lists import PART
from ..triton.operands import Matrix, Vector
from .chosen_backward import backward_pieces
from .chosen_forward import forward_tiles
from .descriptors import addressable


class HopperChosen(ChosenBlocks):
    """The same, by Hopper's own instructions."""

    def forward(self, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = map(addressable, (self.q, self.k, self.v))
        out, lse = empty_results(q, v)
        choices = self._choices
        shared, rare = choices.shared(self._least), choices.rare(self._least)
        forward_tiles((q, k, v), out, lse, sinks, shared, alike=self._heads.alike, causal=self.causal, scale=self.scale)
        self._forward_pieces(out, lse, rare)
        return out, lse

    def backward(self, out, lse, grad_out, grad_lse):
        q, k, v, grad_out = map(addressable, (self.q, self.k, self.v, grad_out))
        axes = self._choices.axes
        rare = self._choices.rare(self._tile + 1)
        aux = torch.empty(*lse.shape, 16, dtype=torch.bfloat16, device=q.device)
        rows = 64
        given = Matrix.of(out), Matrix.of(grad_out), Vector.of(lse), None if grad_lse is None else Vector.of(grad_lse)
        programs = q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], rows)
        portable.prepare_auxiliary[programs,](
            *given, aux, q.shape[2], self._heads, self.scale, ROWS=rows, VALUE_WIDTH=v.shape[3]
        )
        dq, dk, dv = (empty_beside(x, x.shape[3]) for x in (q, k, v))
        together = self._together(q.shape[3])
        pieces = q.new_empty(together, q.shape[2] * self.indices.shape[3], self._repeats, q.shape[3])
        parts = [self._parts(together * rare.most, x.shape[3]) for x in (k, v)]
        inputs = *map(Matrix.of, (q, k, v, grad_out)), aux, pieces, Matrix.of(dk), Matrix.of(dv), *parts
        for first in range(0, self._lanes, together):
            lanes = min(together, self._lanes - first)
            lists = rare, self._heads, axes, first
            backward_pieces[lanes * rare.most,](
                *inputs, *lists, self.scale, PART=PART, **self._group, **self._widths, num_warps=4
            )
            launch = portable.join_queries[lanes * self._rows_of(self.config.join["ROWS"]),]
            given = Matrix.of(dq), pieces, rare.used, self._heads, axes, first, self.scale
            launch(*given, **self._group, WIDTH=q.shape[3], TURNED=True, **self.config.join)
            keys = min(16, self.size)
            launch = portable.join_keys[lanes * axes.blocks * (self.size // keys),]
            launch(Matrix.of(dk), Matrix.of(dv), *parts, *lists, SIZE=self.size, PART=PART, KEYS=keys, **self._widths)
        return dq, dk, dv, None
