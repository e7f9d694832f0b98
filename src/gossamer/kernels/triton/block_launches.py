"""The launches over tables of blocks for heads that share a launch."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..block_tables import BlockTable, BlockTables, LayoutTables
from ..rows import Matrix, Vector
from . import blocks_backward, blocks_forward
from .configs import Kernel, block_config
from .gradients import Gradients
from .operands import Axes, Dropout, Heads, Scores, Table, crowded


class BlockLaunches(NamedTuple):
    """Query heads [B, H, Q, D] with the keys [B, G, K, D] and values that they use, and the blocks that they see."""

    q: Tensor
    k: Tensor
    v: Tensor
    tables: BlockTables | LayoutTables
    heads: Heads
    scores: Scores
    dropout: Dropout | None = None
    within: Tensor | None = None
    """int32 [B, 2], or None: see `Softmax`."""

    def forward(self, out: Tensor, lse: Tensor, sinks: Tensor | None = None, *, continues: bool = False) -> None:
        """Writes the output and the log-sum-exp of every query, or joins the blocks to what they hold."""
        tensors = *map(Matrix.of, (self.q, self.k, self.v, out)), Vector.of(lse), sinks
        constants = self._constants("forward") | {"CONTINUES": continues}
        self._launch(blocks_forward.blocks_forward, tensors, self.tables.by_queries, constants, own="QUERIES")

    def backward_queries(self, come: Gradients, dq: Tensor, *, adds: bool = False) -> None:
        """Writes the gradient of every query, or adds to it; and `deltas` for the keys."""
        tensors = *map(Matrix.of, (self.q, self.k, self.v, come.out)), Vector.of(come.lse), Matrix.of(come.grad_out)
        grad_lse = None if come.grad_lse is None else Vector.of(come.grad_lse)
        tensors = *tensors, grad_lse, Matrix.of(dq), Vector.of(come.deltas)
        constants = self._constants("backward_queries") | {"ADDS": adds}
        self._launch(blocks_backward.blocks_backward_queries, tensors, self.tables.by_queries, constants, own="QUERIES")

    def backward_keys(self, come: Gradients, dk: Tensor, dv: Tensor, *, adds: bool = False) -> None:
        """Writes the gradients of every key and value, or adds to them."""
        tensors = *map(Matrix.of, (self.q, self.k, self.v)), Vector.of(come.lse), Matrix.of(come.grad_out)
        tensors = *tensors, Vector.of(come.deltas), Matrix.of(dk), Matrix.of(dv)
        constants = self._constants("backward_keys") | {"ADDS": adds}
        self._launch(blocks_backward.blocks_backward_keys, tensors, self.tables.by_keys, constants, own="KEYS")

    def _launch(
        self, kernel: Any, tensors: tuple[object, ...], table: BlockTable, constants: dict[str, int], *, own: str
    ) -> None:
        """A program for each part of each row of each head that owns one."""
        (batch, heads, queries, _), (_, key_heads, keys, _) = self.q.shape, self.k.shape
        parts = table.size // constants[own]
        programs = table.starts.shape[1] * parts * batch * (heads if own == "QUERIES" else key_heads)
        known = Table.of(table, heads), Axes(queries, keys, keys - queries), self.within
        if programs:
            kernel[programs,](*tensors, *known, self.heads, self.scores, self.dropout, SIZE=table.size, **constants)

    def _constants(self, kernel: Kernel) -> dict[str, int]:
        """What is fixed when a kernel is compiled."""
        width, value_width = self.q.shape[-1], self.v.shape[-1]
        full = crowded(self.scores, self.dropout)
        tile = block_config(kernel, self.q.dtype, max(width, value_width), self.tables.size, crowded=full)
        return {
            "WIDTH": width, "VALUE_WIDTH": value_width,
            "QUERIES": tile.queries, "KEYS": tile.keys,
            "num_warps": tile.warps, "num_stages": tile.stages,
        }  # fmt: skip
