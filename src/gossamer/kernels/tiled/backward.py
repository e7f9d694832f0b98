"""The backward pass over tiles: probabilities made again from the log-sum-exp, every gradient added up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan import HeadGroup, Plan
from ..problem import Softmax
from .scores import Dropout, keys_of, scores
from .walk import Sight, Strip, Tile, TileSize, walk


@dataclass(frozen=True, eq=False)
class QueryRows:
    """What the backward knows of each query, [lanes, repeats, Q, width] each."""

    q: Tensor
    dout: Tensor
    lse: Tensor
    """[…, 1] in units of log 2, finite."""
    delta: Tensor
    """[…, 1] the sum of dout · out, less the gradient of the log-sum-exp."""
    dq: Tensor
    """Gradient so far."""


@dataclass(frozen=True, eq=False)
class KeyRows:
    """What the backward knows of each key, [lanes, K, width] each."""

    k: Tensor
    v: Tensor
    dk: Tensor
    dv: Tensor


@dataclass(frozen=True, eq=False)
class Backward:
    """Some lanes of one group."""

    queries: QueryRows
    keys: KeyRows
    softmax: Softmax
    dropout: Dropout | None
    sight: Sight | None = None

    def run(self, group: HeadGroup, plan: Plan, size: TileSize) -> None:
        """Visits every tile of the group."""
        for term in group.terms:
            for strip in walk(term, plan, size, self.sight):
                part = self.taken(strip)
                for tile in strip.tiles:
                    part.visit(tile)
                strip.queries.put(self.queries.dq, part.queries.dq)
                strip.keys.put(self.keys.dk, part.keys.dk)
                strip.keys.put(self.keys.dv, part.keys.dv)

    def taken(self, strip: Strip) -> Backward:
        """The strip's queries and keys alone."""
        queries = QueryRows(*(strip.queries.take(x) for x in vars(self.queries).values()))
        keys = KeyRows(*(strip.keys.take(x) for x in vars(self.keys).values()))
        return Backward(queries, keys, self.softmax, self.dropout, self.sight)

    def visit(self, tile: Tile) -> None:
        """Recomputes the tile's probabilities and adds its share to every gradient."""
        rows = QueryRows(*(x[:, :, tile.queries].flatten(1, 2) for x in vars(self.queries).values()))
        k, v = keys_of(self.keys.k, tile), keys_of(self.keys.v, tile)
        weights, slope = scores(rows.q, k, tile, self.softmax)  # [lanes, rows, keys]
        weights.sub_(rows.lse).exp2_()
        dweights = torch.bmm(rows.dout, v.mT)
        dropped = weights
        if self.dropout is not None:
            factors = self.dropout.factors(tile)
            dropped = weights * factors
            dweights *= factors
        _add(self.keys.dv, tile, torch.bmm(dropped.mT, rows.dout))
        dscores = dweights.sub_(rows.delta).mul_(weights)
        if slope is not None:
            dscores *= slope
        dq = self.queries.dq[:, :, tile.queries]
        dq.add_(torch.bmm(dscores, k).view(dq.shape), alpha=self.softmax.scale)
        _add(self.keys.dk, tile, torch.bmm(dscores.mT, rows.q), self.softmax.scale)


def _add(total: Tensor, tile: Tile, part: Tensor, factor: float = 1.0) -> None:
    """Adds `factor · part` to the tile's keys, which are distinct."""
    if isinstance(tile.keys, slice):
        total[:, tile.keys].add_(part, alpha=factor)
    else:
        total.index_add_(1, tile.keys, part, alpha=factor)
