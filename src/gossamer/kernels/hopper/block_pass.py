"""The pass of a group over its blocks: those of its plan, or those that a layout on the device shows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...plan import Blocks, Plan
from ..block_tables import BlockTables, LayoutTables, block_tables
from ..captured import kept
from ..head_runs import HeadRun
from ..problem import Softmax
from .block_masks import packed
from .blocks_backward import blocks_backward
from .blocks_forward import blocks_forward
from .operands import Inputs, Results


class BlockPass(NamedTuple):
    """Tables of the blocks that the heads of a run see."""

    tables: BlockTables | LayoutTables
    scale: float
    within: Tensor | None

    @staticmethod
    def of(run: HeadRun, plan: Plan, softmax: Softmax, q: Tensor) -> BlockPass | None:
        """The pass, or None where the run sees no blocks; `q` [B, H, Q, D] are its queries."""
        if softmax.blocks is not None:
            tables = LayoutTables(softmax.blocks, *q.shape[:2])
            return BlockPass(tables, softmax.scale, softmax.within)
        for term in run.group.terms:
            if isinstance(term, Blocks):
                whole = _packed_tables(term, plan, q.device)
                first = run.group.first
                tables = kept(whole, q.device).of_heads(run.queries.start - first, run.queries.stop - first)
                return BlockPass(tables, softmax.scale, softmax.within)
        return None

    def forward(self, inputs: Inputs, out: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
        """Writes the output and the log-sum-exp of every query."""
        blocks_forward(inputs, self.tables.by_queries, out, lse, scale=self.scale, within=self.within, sinks=sinks)

    def backward(self, inputs: Inputs, results: Results, gradients: Inputs, *, fresh: bool) -> None:
        """Writes the gradients of q, k and v; adds to those of k and v where they are not `fresh`."""
        dq, dk, dv = gradients
        some = gradients if fresh else Inputs(dq, torch.empty_like(dk), torch.empty_like(dv))
        tables = BlockTables(self.tables.by_queries, self.tables.by_keys)
        blocks_backward(inputs, results, tables, some, scale=self.scale, within=self.within)
        if not fresh:
            dk += some.k
            dv += some.v


@lru_cache(maxsize=64)
def _packed_tables(term: Blocks, plan: Plan, device: torch.device) -> BlockTables:
    return BlockTables(*map(packed, block_tables(term, plan, device)))
