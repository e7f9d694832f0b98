"""Softmax attention over chosen keys, a block of queries at a time: forward, and backward by computing it again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import Softmax
from .layouts import Layout, Seen
from .selection import Selection


@dataclass(frozen=True, eq=False)
class Inputs:
    """What attention reads: q [B, H, Q, D], k [B, G, K, D], v [B, G, K, Dv], a logit a head, and who sees whom."""

    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None
    selection: Selection
    softmax: Softmax

    @property
    def wide(self) -> torch.dtype:
        """What sums and exponentials are kept in."""
        return torch.promote_types(self.q.dtype, torch.float32)


def forward(given: Inputs) -> tuple[Tensor, Tensor]:
    """(out [B, Q, H, Dv], log-sum-exp [B, H, Q]); zeros and minus infinity for a query that sees nothing."""
    batch, heads, queries, _ = given.q.shape
    out = given.q.new_empty(batch, queries, heads, given.v.shape[3])
    lse = given.q.new_empty(batch, heads, queries, dtype=given.wide)
    layout = Layout.of(given.q, given.k, given.v, given.selection)
    for first in range(0, queries, layout.step):
        block = _Block.of(given, layout, first)
        peak = block.scores.amax(-1, keepdim=True)
        peak = peak if block.sink is None else torch.maximum(peak, block.sink)
        peak = peak.masked_fill(peak == -torch.inf, 0.0)
        weights = (block.scores - peak).exp_()
        total = weights.sum(-1, keepdim=True)
        total = total if block.sink is None else total + (block.sink - peak).exp()
        weights = block.dropped(weights / total.masked_fill(total == 0.0, 1.0))
        out[:, first : block.last] = layout.queries(weights.to(given.v.dtype) @ block.seen.v).transpose(1, 2)
        lse[:, :, first : block.last] = layout.queries(peak + total.log())[..., 0]
    return out, lse


def backward(given: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and the sinks, of which the last is empty where there are none."""
    q, k, v = given.q, given.k, given.v
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros(x.shape, dtype=given.wide, device=x.device) for x in (k, v))
    dsinks = torch.zeros(q.shape[1] if given.sinks is not None else 0, dtype=given.wide, device=q.device)
    layout = Layout.of(q, k, v, given.selection)
    for first in range(0, q.shape[2], layout.step):
        block = _Block.of(given, layout, first)
        part = slice(first, block.last)
        norm = layout.rows(lse[:, :, part, None])
        norm = norm.masked_fill(norm == -torch.inf, torch.inf)  # who sees nothing has no weights
        weights = (block.scores - norm).exp_()
        grad = layout.rows(grad_out[:, part].transpose(1, 2))
        due = (grad.to(given.wide) * layout.rows(out[:, part].transpose(1, 2))).sum(-1, keepdim=True)
        block.seen.add(dv, block.dropped(weights).to(q.dtype).mT @ grad)
        reaching = block.dropped((grad @ block.seen.v.mT).to(given.wide))
        dscores = (weights * (reaching - due) * block.slope()).to(q.dtype)
        dq[:, :, part] = layout.queries(dscores @ block.seen.k)
        block.seen.add(dk, dscores.mT @ block.q)
        if block.sink is not None:
            dsinks -= layout.queries((block.sink - norm).exp() * due).sum((0, 2, 3))
    return dq, dk.to(k.dtype), dv.to(v.dtype), dsinks if given.sinks is None else dsinks.to(given.sinks.dtype)


@dataclass(frozen=True, eq=False)
class _Block:
    """Queries `first … last - 1`, laid out as rows, with the keys that they meet."""

    first: int
    last: int
    softmax: Softmax
    q: Tensor
    seen: Seen
    sink: Tensor | None
    scores: Tensor
    """Scaled and capped; minus infinity where a key is hidden."""

    @classmethod
    def of(cls, given: Inputs, layout: Layout, first: int) -> _Block:
        last = min(first + layout.step, given.q.shape[2])
        q, softmax = layout.rows(given.q[:, :, first:last]), given.softmax
        seen = layout.seen(given.k, given.v, first, last)
        scores = (q @ seen.k.mT).to(given.wide) * softmax.scale
        if softmax.softcap:
            scores = softmax.softcap * (scores / softmax.softcap).tanh()
        sink = given.sinks
        if sink is not None:
            batch, heads = given.q.shape[:2]
            sink = layout.rows(sink.to(given.wide)[:, None, None].expand(batch, heads, last - first, 1))
        return cls(first, last, softmax, q, seen, sink, scores.masked_fill(~seen.visible, -torch.inf))

    def dropped(self, weights: Tensor) -> Tensor:
        """The weights, some of them zero and the others scaled up; the same ones at each call."""
        probability, seed = self.softmax.dropout, self.softmax.seed
        if not probability or seed is None:
            return weights
        draw = torch.Generator(weights.device).manual_seed(int(seed) + self.first)  # the seed lies on the host
        kept = torch.rand(weights.shape, generator=draw, device=weights.device) >= probability
        return weights * kept / (1.0 - probability)

    def slope(self) -> Tensor | float:
        """Derivative of a score by the product of query and key."""
        scale, softcap = self.softmax.scale, self.softmax.softcap
        if not softcap:
            return scale
        return scale * (1.0 - (self.scores.masked_fill(~self.seen.visible, 0.0) / softcap) ** 2)
