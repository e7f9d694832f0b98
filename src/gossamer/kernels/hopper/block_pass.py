"""The pass of a group over its blocks: those of its plan, or those that a layout on the device shows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...plan import Blocks, Plan
from ..block_tables import BlockTable, BlockTables, LayoutTables, block_tables
from ..captured import kept, refuse_capture
from ..devices import finished
from ..head_runs import HeadRun
from ..problem import Softmax
from . import long_passes
from .block_masks import packed
from .long_rows import Crew, Cut, cut
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
                first = run.group.first
                heads = run.queries.start - first, run.queries.stop - first
                tables = kept(_packed_tables(term, plan, q.device, *heads), q.device)
                return BlockPass(tables, softmax.scale, softmax.within)
        return None

    def forward(self, inputs: Inputs, out: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
        """Writes the output and the log-sum-exp of every query."""
        table = self.tables.by_queries
        by_queries = self._cut(table, Crew.of_queries(inputs, table))
        long_passes.forward(inputs, by_queries, out, lse, scale=self.scale, within=self.within, sinks=sinks)

    def backward(self, inputs: Inputs, results: Results, gradients: Inputs, *, fresh: bool) -> None:
        """Writes the gradients of q, k and v; adds to those of k and v where they are not `fresh`."""
        dq, dk, dv = gradients
        settings = {"scale": self.scale, "within": self.within}
        some = (dk, dv) if fresh else (torch.empty_like(dk), torch.empty_like(dv))
        table, keys = self.tables.by_queries, self.tables.by_keys
        by_queries = self._cut(table, Crew.of_queries(inputs, table))
        by_keys = self._cut(keys, Crew.of_keys(inputs, keys))
        aux = long_passes.queries_backward(inputs, results, by_queries, dq, **settings)
        long_passes.keys_backward(inputs, results.grad_out, aux, by_keys, some, **settings)
        if not fresh:
            dk += some[0]
            dv += some[1]

    def _cut(self, table: BlockTable, crew: Crew) -> Cut:
        """The table as it stands where the device alone knows which rows of it are long."""
        return Cut(table, None) if isinstance(self.tables, LayoutTables) else cut(table, crew)


@lru_cache(maxsize=64)
def _packed_tables(term: Blocks, plan: Plan, device: torch.device, first: int, last: int) -> BlockTables:
    """Those of the group's heads `first … last - 1`."""
    refuse_capture(device)
    made = BlockTables(*map(packed, block_tables(term, plan, device))).of_heads(first, last)
    return finished(made, device)
