"""The forward pass over tiles: softmax attention of each, joined by log-sum-exp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan import HeadGroup, Plan
from ..problem import Softmax
from .scores import LOG2E, Dropout, keys_of, scores
from .walk import Sight, Strip, Tile, TileSize, walk


@dataclass(frozen=True, eq=False)
class Forward:
    """Some lanes of one group, and the output and log-sum-exp (in units of log 2) of the keys met so far."""

    q: Tensor  # [lanes, repeats, Q, D]
    k: Tensor  # [lanes, K, D]
    v: Tensor  # [lanes, K, Dv]
    out: Tensor  # [lanes, repeats, Q, Dv]
    lse: Tensor  # [lanes, repeats, Q, 1]
    softmax: Softmax
    dropout: Dropout | None
    sight: Sight | None = None

    def run(self, group: HeadGroup, plan: Plan, size: TileSize, fresh: bool) -> None:
        """Visits every tile of the group; `fresh` where `out` and `lse` hold nothing yet."""
        for number, term in enumerate(group.terms):
            for strip in walk(term, plan, size, self.sight):
                part = self.taken(strip)
                for tile in strip.tiles:
                    part.visit(tile, fresh and number == 0 and tile.first)
                strip.queries.put(self.out, part.out)
                strip.queries.put(self.lse, part.lse)

    def taken(self, strip: Strip) -> Forward:
        """The strip's queries and keys alone."""
        q, out, lse = (strip.queries.take(x) for x in (self.q, self.out, self.lse))
        return Forward(
            q, strip.keys.take(self.k), strip.keys.take(self.v), out, lse, self.softmax, self.dropout, self.sight
        )

    def visit(self, tile: Tile, fresh: bool) -> None:
        """Softmax attention of one tile, joined to what its queries met before."""
        q = self.q[:, :, tile.queries].flatten(1, 2)  # [lanes, rows, D]
        weights, _ = scores(q, keys_of(self.k, tile), tile, self.softmax)  # [lanes, rows, keys]
        peak = weights.amax(-1, keepdim=True)
        if tile.bias is not None:  # a row that sees nothing peaks at -inf; a finite peak keeps NaN out
            peak.clamp_(min=torch.finfo(peak.dtype).min)
        weights.sub_(peak).exp2_()
        total = weights.sum(-1, keepdim=True)
        if self.dropout is not None:
            weights *= self.dropout.factors(tile)
        out = torch.bmm(weights, keys_of(self.v, tile)).div_(total.clamp(min=1.0))  # ≥ 1 wherever anything is seen
        self.join(tile.queries, out, total.log2_().add_(peak), fresh)

    def join(self, queries: slice, out: Tensor, lse: Tensor, fresh: bool) -> None:
        """Weighs a tile's output against the one before by their log-sum-exps."""
        out_before, lse_before = self.out[:, :, queries], self.lse[:, :, queries]
        out, lse = out.view(out_before.shape), lse.view(lse_before.shape)
        if fresh:
            out_before.copy_(out)
            lse_before.copy_(lse)
            return
        gain = lse - lse_before.clamp(min=torch.finfo(lse.dtype).min)  # finite: -inf - -inf would be NaN
        out_before.lerp_(out, gain.mul_(1 / LOG2E).sigmoid_())  # two weights that sum to exactly 1
        torch.logaddexp2(lse_before, lse, out=lse_before)
