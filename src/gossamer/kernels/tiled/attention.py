"""Tiled attention in plain PyTorch: every device, every feature, and the algorithm to read first.

Each tile of a plan is softmax attention of its own; tiles that meet the same queries are joined by their
log-sum-exp. Memory is linear in the length and the cost is the plan's. Scores and log-sum-exps live in units of
log 2 in here, because exp2 is the cheapest exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan import HeadGroup, Plan
from ..dropout import keep_factor
from ..problem import Problem, Saved, Softmax
from .walk import Tile, TileSize, strips, tiles

LOG2E = math.log2(math.e)
CACHE_SCORES = 2**18
"""Scores of one tile over all lanes on a CPU: 1 MiB in float32, about what two cores' second-level caches hold."""


@dataclass(frozen=True)
class Heads:
    """Query heads of one group together with exactly the key heads they use, `repeats` queries to each."""

    queries: slice
    keys: slice
    repeats: int

    def lanes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, H, Q, D] → [lanes, repeats, Q, D]; a lane is one key head of one batch row."""
        shape = self.keys.stop - self.keys.start, self.repeats
        return x[:, self.queries].unflatten(1, shape).flatten(0, 1).to(dtype)

    def heads(self, lanes: Tensor, batch: int) -> Tensor:
        """The inverse of `lanes`: [lanes, repeats, Q, D] → [B, heads, Q, D]."""
        return lanes.reshape(batch, self.queries.stop - self.queries.start, *lanes.shape[2:])

    def key_lanes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, G, K, D] → [lanes, K, D]."""
        return x[:, self.keys].flatten(0, 1).to(dtype)

    def streams(self, batch: int, heads: int, device: torch.device) -> Tensor:
        """[lanes, repeats] the number `batch · heads + head` of each row of queries: its dropout stream."""
        numbers = torch.arange(batch * heads, device=device).view(batch, heads)[:, self.queries]
        return numbers.unflatten(1, (-1, self.repeats)).flatten(0, 1)


class Tiled:
    """The portable backend: plain PyTorch operations on tiles."""

    name = "tiled"

    def refuses(self, problem: Problem) -> str | None:
        if problem.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {problem.dtype}; it computes float64, float32, bfloat16 and float16"
        return None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(q.dtype)
        outs, lses = [], []
        for heads in _head_runs(plan, q.shape[1] // k.shape[1]):
            group = _group_of(plan, heads)
            lanes = heads.lanes(q, dtype), heads.key_lanes(k, dtype), heads.key_lanes(v, dtype)
            out = lanes[0].new_zeros(*lanes[0].shape[:-1], v.shape[-1])  # [lanes, repeats, Q, Dv]
            lse = lanes[0].new_full((*lanes[0].shape[:-1], 1), -torch.inf)
            if sinks is not None:  # a sink is a key that was seen already and has no value
                heads.heads(lse, q.shape[0]).copy_((sinks[heads.queries].to(dtype) * LOG2E)[:, None, None])
            streams = heads.streams(q.shape[0], q.shape[1], q.device)
            for part in _lane_parts(out, heads.repeats):
                state = Forward(*(x[part] for x in lanes), out[part], lse[part], streams[part], softmax)
                state.run(group, plan, fresh=sinks is None)
            outs.append(heads.heads(out, q.shape[0]))
            lses.append(heads.heads(lse, q.shape[0]))
        return _joined(outs).to(q.dtype), _joined(lses)[..., 0].div_(LOG2E)

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        q, k, v, dtype = saved.q, saved.k, saved.v, _compute_dtype(saved.q.dtype)
        delta = torch.einsum("bhqd,bhqd->bhq", grad_out.to(dtype), saved.out.to(dtype))
        if grad_lse is not None:
            delta = delta - grad_lse
        lse = saved.lse.masked_fill(saved.lse == -torch.inf, 0.0)  # nothing is visible there: exp2(-inf - 0) = 0
        dqs, dk, dv = [], None, None
        for heads in _head_runs(plan, q.shape[1] // k.shape[1]):
            group = _group_of(plan, heads)
            inputs = heads.lanes(q, dtype), heads.key_lanes(k, dtype), heads.key_lanes(v, dtype)
            rows = (heads.lanes(x, dtype) for x in (grad_out, (lse * LOG2E)[..., None], delta[..., None]))
            grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
            streams = heads.streams(q.shape[0], q.shape[1], q.device)
            states = (*inputs, *rows, *grads, streams)
            for part in _lane_parts(grads[0], heads.repeats):
                Backward(*(x[part] for x in states), softmax).run(group, plan)
            dqs.append(heads.heads(grads[0], q.shape[0]))
            dk = _accumulated(dk, grads[1], heads, k)
            dv = _accumulated(dv, grads[2], heads, v)
        dsinks = None if saved.sinks is None else _sink_gradient(saved, delta)
        return _joined(dqs).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dsinks


@dataclass(frozen=True, eq=False)
class Forward:
    """Some lanes of one group, and the output and log-sum-exp of what was visited so far."""

    q: Tensor  # [lanes, repeats, Q, D]
    k: Tensor  # [lanes, K, D]
    v: Tensor  # [lanes, K, Dv]
    out: Tensor  # [lanes, repeats, Q, Dv]
    lse: Tensor  # [lanes, repeats, Q, 1]
    streams: Tensor  # [lanes, repeats]
    softmax: Softmax

    def run(self, group: HeadGroup, plan: Plan, fresh: bool) -> None:
        """Visits every tile of the group; `fresh` where nothing was written yet."""
        size = _tile_size(self.q, self.q.shape[1])
        for term in group.terms:
            for strip in strips(term, plan):
                queries, keys = strip.queries, strip.keys
                part = Forward(
                    queries.take(self.q), keys.take(self.k), keys.take(self.v),
                    queries.take(self.out), queries.take(self.lse), self.streams, self.softmax,
                )  # fmt: skip
                for tile in tiles(strip, size):
                    part.visit(tile, fresh and term is group.terms[0] and tile.first)
                queries.put(self.out, part.out)
                queries.put(self.lse, part.lse)

    def visit(self, tile: Tile, fresh: bool) -> None:
        """Softmax attention of one tile, joined to what its queries met before."""
        q, k, v = self.q[:, :, tile.queries].flatten(1, 2), _at(self.k, tile.keys), _at(self.v, tile.keys)
        scores = _scores(q, k, tile, self.softmax)[0]  # [lanes, repeats · q, k]
        peak = scores.amax(-1, keepdim=True)
        if tile.bias is not None:  # a row that sees nothing peaks at -inf; a finite peak keeps NaN out
            peak.clamp_(min=torch.finfo(peak.dtype).min)
        weights = scores.sub_(peak).exp2_()
        total = weights.sum(-1, keepdim=True)
        if self.softmax.seed is not None:
            weights *= _keep(tile, self.streams, self.softmax)
        out = torch.bmm(weights, v).div_(total.clamp(min=1.0))  # at least 1 wherever anything is seen
        self._join(tile.queries, out, total.log2_().add_(peak), fresh)

    def _join(self, queries: slice, out: Tensor, lse: Tensor, fresh: bool) -> None:
        out_before, lse_before = self.out[:, :, queries], self.lse[:, :, queries]
        out, lse = out.view(out_before.shape), lse.view(lse_before.shape)
        if fresh:
            out_before.copy_(out)
            lse_before.copy_(lse)
            return
        joined = torch.logaddexp2(lse_before, lse)
        floor = joined.clamp(min=torch.finfo(lse.dtype).min)  # -inf - -inf where nothing was seen at all
        out_before.mul_(torch.exp2(lse_before - floor)).addcmul_(out, torch.exp2(lse - floor))
        lse_before.copy_(joined)


@dataclass(frozen=True, eq=False)
class Backward:
    """Some lanes of one group: inputs, what the forward left for each query, and the gradients so far."""

    q: Tensor  # [lanes, repeats, Q, D]
    k: Tensor  # [lanes, K, D]
    v: Tensor  # [lanes, K, Dv]
    dout: Tensor  # [lanes, repeats, Q, Dv]
    lse: Tensor  # [lanes, repeats, Q, 1], finite
    delta: Tensor  # [lanes, repeats, Q, 1]: sum of dout · out, less the gradient of the log-sum-exp
    dq: Tensor
    dk: Tensor
    dv: Tensor
    streams: Tensor
    softmax: Softmax

    def run(self, group: HeadGroup, plan: Plan) -> None:
        size = _tile_size(self.q, self.q.shape[1])
        for term in group.terms:
            for strip in strips(term, plan):
                queries, keys = strip.queries, strip.keys
                part = Backward(
                    queries.take(self.q), keys.take(self.k), keys.take(self.v),
                    queries.take(self.dout), queries.take(self.lse), queries.take(self.delta),
                    queries.take(self.dq), keys.take(self.dk), keys.take(self.dv), self.streams, self.softmax,
                )  # fmt: skip
                for tile in tiles(strip, size):
                    part.visit(tile)
                for axis, whole, gathered in zip(
                    (queries, keys, keys), (self.dq, self.dk, self.dv), (part.dq, part.dk, part.dv), strict=True
                ):
                    axis.put(whole, gathered)

    def visit(self, tile: Tile) -> None:
        """Recomputes the tile's probabilities and adds its share to every gradient."""
        rows = (x[:, :, tile.queries].flatten(1, 2) for x in (self.q, self.dout, self.lse, self.delta))
        q, dout, lse, delta = rows
        k, v = _at(self.k, tile.keys), _at(self.v, tile.keys)
        scores, slope = _scores(q, k, tile, self.softmax)
        weights = scores.sub_(lse).exp2_()  # [lanes, repeats · q, k]
        dweights = torch.bmm(dout, v.mT)
        dropped = weights
        if self.softmax.seed is not None:
            keep = _keep(tile, self.streams, self.softmax)
            dweights, dropped = dweights.mul_(keep), weights * keep
        _add(self.dv, tile.keys, dropped.mT, dout, 1.0)
        dscores = dweights.sub_(delta).mul_(weights)
        if slope is not None:
            dscores *= slope
        dq = torch.bmm(dscores, k).mul_(self.softmax.scale)
        before = self.dq[:, :, tile.queries]
        before.add_(dq.view(before.shape))
        _add(self.dk, tile.keys, dscores.mT, q, self.softmax.scale)


TILED = Tiled()


def _scores(q: Tensor, k: Tensor, tile: Tile, softmax: Softmax) -> tuple[Tensor, Tensor | None]:
    """(biased scores in units of log 2, slope of the soft-cap if there is one)."""
    unit = softmax.scale / softmax.softcap if softmax.softcap else softmax.scale * LOG2E
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=unit)
    slope = None
    if softmax.softcap:
        slope = 1 - scores.tanh_().square()
        scores.mul_(softmax.softcap * LOG2E)
    if tile.bias is not None:
        scores.unflatten(1, (-1, tile.bias.shape[0])).add_(tile.bias)
    return scores, slope


def _keep(tile: Tile, streams: Tensor, softmax: Softmax) -> Tensor:
    """[lanes, repeats · q, k] the tile's dropout factors."""
    keep = keep_factor(
        softmax.dropout, int(softmax.seed.item()), streams.flatten(), tile.q_positions, tile.k_positions
    )
    return keep.unflatten(0, streams.shape).flatten(1, 2)


def _at(x: Tensor, keys: slice | Tensor) -> Tensor:
    return x[:, keys] if isinstance(keys, slice) else x.index_select(1, keys)


def _add(total: Tensor, keys: slice | Tensor, a: Tensor, b: Tensor, factor: float) -> None:
    """total[:, keys] += factor · a @ b; the keys of one tile are distinct."""
    product = torch.bmm(a, b)  # in place, baddbmm_ on a slice would fall back to one product after the other
    if isinstance(keys, slice):
        total[:, keys].add_(product, alpha=factor)
    else:
        total.index_add_(1, keys, product, alpha=factor)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32: scores and probabilities are never rounded to 8 or 11 bits."""
    return torch.promote_types(dtype, torch.float32)


def _head_runs(plan: Plan, repeats: int) -> Iterator[Heads]:
    """Each group's heads, cut where a key head is shared with another group."""
    for group in plan.groups:
        head = group.first
        while head < group.last:
            whole = (group.last - head) // repeats * repeats if head % repeats == 0 else 0
            end = head + whole if whole else min(group.last, (head // repeats + 1) * repeats)
            keys = slice(head // repeats, (end - 1) // repeats + 1)
            yield Heads(slice(head, end), keys, (end - head) // (keys.stop - keys.start))
            head = end


def _group_of(plan: Plan, heads: Heads) -> HeadGroup:
    return next(group for group in plan.groups if group.first <= heads.queries.start < group.last)


def _tile_size(q: Tensor, repeats: int) -> TileSize:
    """Small tiles fit a CPU's cache; large ones spare a GPU launches."""
    rows = max(16, 64 // repeats) if q.device.type == "cpu" else 256
    budget = 3 * 2**14 if q.device.type == "cpu" else 2**20
    return TileSize(rows, max(768, budget // (repeats * min(rows, max(q.shape[2], 1)))), q.device, q.dtype)


def _lane_parts(lanes: Tensor, repeats: int) -> Iterator[slice]:
    """Runs of lanes whose tiles together fit the cache; all of them on a GPU."""
    count = lanes.shape[0]
    most = max(1, CACHE_SCORES // (64 * 320)) if lanes.device.type == "cpu" else count
    for first in range(0, count, max(most, 1)):
        yield slice(first, first + most)


def _sink_gradient(saved: Saved, delta: Tensor) -> Tensor:
    """A sink's probability times what the other keys lose to it, summed over batch and queries."""
    lse = saved.lse.clamp(min=torch.finfo(saved.lse.dtype).min)  # of nothing but a sink of minus infinity
    probability = torch.exp(saved.sinks.to(lse.dtype)[:, None] - lse)
    return -(probability * delta).sum(dim=(0, 2)).to(saved.sinks.dtype)


def _accumulated(total: Tensor | None, lanes: Tensor, heads: Heads, like: Tensor) -> Tensor:
    """[B, G, K, D] with the lanes' gradients added at their key heads."""
    part = lanes.unflatten(0, (like.shape[0], heads.keys.stop - heads.keys.start))
    if total is None and part.shape[1] == like.shape[1]:
        return part
    if total is None:
        total = lanes.new_zeros(like.shape)
    total[:, heads.keys] += part
    return total


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
