"""Indexed attention in plain PyTorch, a block of queries at a time: forward, and backward by computing it again.

The algorithm to read first, on every device and in float64. The same inputs give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dropout import keep_pairs
from ..indexed import Inputs, Returning
from ..layout import empty_by_token
from .indexed_layouts import Layout, Seen


class Tiled:
    """Runs on every device, in float64, float32, bfloat16 and float16."""

    name = "tiled"

    def refuses(self, given: Inputs, *, backward: bool) -> str | None:
        """Never: the operator takes only what it computes."""
        return None

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, log-sum-exp), as `Road` says."""
        batch, heads, queries, _ = given.q.shape
        out = empty_by_token(given.q, given.value_width)
        lse = given.q.new_empty(batch, heads, queries, dtype=given.wide)
        layout = Layout.of(given)
        for first in range(0, queries, layout.step):
            block = _Block.of(given, layout, first)
            peak = block.scores.amax(-1, keepdim=True)
            peak = peak if block.sink is None else torch.maximum(peak, block.sink)
            peak = peak.masked_fill(peak == -torch.inf, 0.0)
            weights = (block.scores - peak).exp_()
            total = weights.sum(-1, keepdim=True)
            total = total if block.sink is None else total + (block.sink - peak).exp()
            weights = block.dropped(weights / total.masked_fill(total == 0.0, 1.0))
            out[:, :, first : block.last] = layout.queries(weights.to(given.q.dtype) @ block.seen.v)
            lse[:, :, first : block.last] = layout.queries(peak + total.log())[..., 0]
        return out, lse

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and v, as `Road` says."""
        q, k, v, layout = given.q, given.k, given.v, Layout.of(given)
        dq, dk = torch.empty_like(q), k.new_zeros(k.shape, dtype=given.wide)
        dv = None if v is None else v.new_zeros(v.shape, dtype=given.wide)
        delta = (come.grad_out.to(given.wide) * come.out).sum(-1, keepdim=True)
        delta = delta if come.grad_lse is None else delta - come.grad_lse[..., None]
        for first in range(0, q.shape[2], layout.step):
            block = _Block.of(given, layout, first)
            part = slice(first, block.last)
            norm = layout.rows(come.lse[:, :, part, None])
            norm = norm.masked_fill(norm == -torch.inf, torch.inf)  # who sees nothing has no weights
            weights = (block.scores - norm).exp_()
            grad = block.seeing(layout.rows(come.grad_out[:, :, part]))
            due = block.seeing(layout.rows(delta[:, :, part]))
            of_values = block.dropped(weights).to(q.dtype).mT @ grad
            reaching = block.dropped((grad @ block.seen.v.mT).to(given.wide))
            dscores = (weights * (reaching - due) * block.slope()).to(q.dtype)
            dq[:, :, part] = layout.queries(dscores @ block.seen.k)
            of_keys = dscores.mT @ block.q
            if dv is None:
                of_keys[..., : given.value_width] += of_values
            else:
                block.seen.add(dv, of_values)
            block.seen.add(dk, of_keys)
        return dq, dk.to(k.dtype), None if v is None or dv is None else dv.to(v.dtype)


TILED_INDEXED = Tiled()


@dataclass(frozen=True, eq=False)
class _Block:
    """Queries `first … last - 1`, laid out as rows, with the keys that they meet."""

    given: Inputs
    layout: Layout
    first: int
    last: int
    q: Tensor
    seen: Seen
    sink: Tensor | None
    scores: Tensor
    """Scaled and capped; minus infinity where a key is hidden."""

    @classmethod
    def of(cls, given: Inputs, layout: Layout, first: int) -> _Block:
        last = min(first + layout.step, given.q.shape[2])
        seen, softmax = layout.seen(given, first, last), given.softmax
        q = layout.rows(given.q[:, :, first:last]).masked_fill(seen.blind, 0.0)
        scores = (q @ seen.k.mT).to(given.wide) * softmax.scale
        if softmax.softcap:
            scores = softmax.softcap * (scores / softmax.softcap).tanh()
        sink = given.sinks
        if sink is not None:
            batch, heads = given.q.shape[:2]
            sink = layout.rows(sink.to(given.wide)[:, None, None].expand(batch, heads, last - first, 1))
        return cls(given, layout, first, last, q, seen, sink, scores.masked_fill(~seen.visible, -torch.inf))

    def seeing(self, rows: Tensor) -> Tensor:
        """Zeros in place of what comes to a query that sees nothing, whatever that is."""
        return rows.masked_fill(self.seen.blind, 0.0)

    def dropped(self, weights: Tensor) -> Tensor:
        """The weights, some of them zero and the others scaled up; the same ones at each call."""
        probability, seed = self.given.softmax.dropout, self.given.softmax.seed
        if not probability or seed is None:
            return weights
        batch, heads, keys = *self.given.q.shape[:2], self.given.k.shape[2]
        lanes = torch.arange(batch * heads, device=weights.device).view(batch, heads, 1, 1)
        queries = torch.arange(self.first, self.last, device=weights.device)[:, None] + self.given.position
        shape = batch, heads, self.last - self.first, 1
        lanes, queries = (self.layout.rows(x.expand(shape)) for x in (lanes, queries))
        return weights * keep_pairs(probability, seed, lanes, queries, self.seen.keys(keys))

    def slope(self) -> Tensor | float:
        """Derivative of a score by the product of query and key."""
        scale, softcap = self.given.softmax.scale, self.given.softmax.softcap
        if not softcap:
            return scale
        return scale * (1.0 - (self.scores.masked_fill(~self.seen.visible, 0.0) / softcap) ** 2)
