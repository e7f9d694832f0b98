"""The portable backend: tiled attention in plain PyTorch, and the algorithm to read first.

Each tile of a plan is softmax attention of its own; tiles that meet the same queries are joined by their log-sum-exp.
Memory is linear in the length and the cost is the plan's. Scores and log-sum-exps live in units of log 2 in here,
because exp2 is the cheapest exponential.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...plan import Plan
from ..problem import Problem, Saved, Softmax
from ..sinks import sink_gradient
from .backward import Backward, KeyRows, QueryRows
from .forward import Forward
from .heads import Heads
from .scores import LOG2E, Dropout
from .sequences import Sequence, apart, sequences
from .walk import TileSize

CPU_LANES = 12
"""Lanes whose tiles of 64 × 320 float32 scores (1 MiB together) stay in two cores' second-level caches."""


class Tiled:
    """Runs every plan on every device, forward and backward."""

    name = "tiled"

    def refuses(self, problem: Problem) -> str | None:
        """A reason for dtypes that are no floating-point numbers; everything else runs."""
        if problem.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {problem.dtype}; it computes float64, float32, bfloat16 and float16"
        return None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Backend` says."""
        if not apart(softmax):
            return _forward(q, k, v, sinks, plan, softmax)
        out, lse = q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(q.shape[:-1], dtype=_compute_dtype(q.dtype))
        lse.copy_(lse.new_tensor(-torch.inf) if sinks is None else sinks[:, None])
        for one in sequences(plan, softmax, q.shape[0]):
            part = one.queries_of(q), one.keys_of(k), one.keys_of(v)
            made = _forward(*part, sinks, one.plan, softmax, one)
            for whole, values in zip((out, lse), made, strict=True):
                one.queries_of(whole).copy_(values)
        return out, lse

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(dq, dk, dv, gradient of the sinks), as `Backend` says."""
        dsinks = sink_gradient(saved, grad_out, grad_lse)
        if not apart(softmax):
            return *_backward(saved, grad_out, grad_lse, plan, softmax), dsinks
        dq, dk, dv = (x.new_zeros(x.shape) for x in (saved.q, saved.k, saved.v))
        for one in sequences(plan, softmax, saved.q.shape[0]):
            q, out, lse, dout = (one.queries_of(x) for x in (saved.q, saved.out, saved.lse, grad_out))
            part = Saved(q, one.keys_of(saved.k), one.keys_of(saved.v), out, lse, None)
            dlse = None if grad_lse is None else one.queries_of(grad_lse)
            gradients = _backward(part, dout, dlse, one.plan, softmax, one)
            for whole, values in zip((one.queries_of(dq), one.keys_of(dk), one.keys_of(dv)), gradients, strict=True):
                whole.copy_(values)
        return dq, dk, dv, dsinks


TILED = Tiled()


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax, one: Sequence | None = None
) -> tuple[Tensor, Tensor]:
    """(out, natural log-sum-exp) of sequences that are as long as the plan: all of them, or one."""
    dtype, outs, lses, sight = _compute_dtype(q.dtype), [], [], one.sight if one else None
    for heads in Heads.of(plan, q.shape[1] // k.shape[1]):
        q_lanes, k_lanes, v_lanes = heads.lanes(q, dtype), heads.key_lanes(k, dtype), heads.key_lanes(v, dtype)
        out = q_lanes.new_zeros(*q_lanes.shape[:-1], v.shape[-1])  # [lanes, repeats, Q, Dv]
        lse = q_lanes.new_full((*q_lanes.shape[:-1], 1), -torch.inf)
        if sinks is not None:  # a sink is a key that was seen already and has no value
            heads.unlaned(lse, q.shape[0]).copy_((sinks[heads.queries].to(dtype) * LOG2E)[:, None, None])
        dropout, size = Dropout.of(softmax, heads, q, one.number if one else 0), _tile_size(q_lanes)
        for some in _lane_parts(q_lanes):
            lanes = (x[some] for x in (q_lanes, k_lanes, v_lanes, out, lse))
            part = Forward(*lanes, softmax=softmax, dropout=dropout and dropout.part(some), sight=sight)
            part.run(heads.group, plan, size, fresh=sinks is None)
        outs.append(heads.unlaned(out, q.shape[0]))
        lses.append(heads.unlaned(lse, q.shape[0]))
    return _joined(outs).to(q.dtype), _joined(lses)[..., 0].div_(LOG2E)


def _backward(
    saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax, one: Sequence | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) of sequences that are as long as the plan: all of them, or one."""
    dtype, dqs, sight = _compute_dtype(saved.q.dtype), [], one.sight if one else None
    dk, dv = (x.new_zeros(x.shape, dtype=dtype) for x in (saved.k, saved.v))
    delta = torch.einsum("bhqd,bhqd->bhq", grad_out.to(dtype), saved.out.to(dtype))
    if grad_lse is not None:
        delta = delta - grad_lse
    lse = saved.lse.masked_fill(saved.lse == -torch.inf, 0.0)  # nothing is visible there: exp2(-inf - 0) = 0
    for heads in Heads.of(plan, saved.q.shape[1] // saved.k.shape[1]):
        query_side = (saved.q, grad_out, (lse * LOG2E)[..., None], delta[..., None])
        queries = [heads.lanes(x, dtype) for x in query_side]
        queries.append(queries[0].new_zeros(queries[0].shape))
        keys = [heads.key_lanes(x, dtype) for x in (saved.k, saved.v, dk, dv)]
        dropout, size = Dropout.of(softmax, heads, saved.q, one.number if one else 0), _tile_size(queries[0])
        for some in _lane_parts(queries[0]):
            rows, columns = QueryRows(*(x[some] for x in queries)), KeyRows(*(x[some] for x in keys))
            Backward(rows, columns, softmax, dropout and dropout.part(some), sight).run(heads.group, plan, size)
        dqs.append(heads.unlaned(queries[-1], saved.q.shape[0]))
        heads.put_keys(dk, keys[2])
        heads.put_keys(dv, keys[3])
    return _joined(dqs).to(saved.q.dtype), dk.to(saved.k.dtype), dv.to(saved.v.dtype)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32: scores and probabilities are never rounded to 8 or 11 bits."""
    return torch.promote_types(dtype, torch.float32)


def _tile_size(q: Tensor) -> TileSize:
    """Small tiles fit a CPU's cache; large ones spare a GPU launches. Few rows get more keys."""
    _, repeats, queries, _ = q.shape
    cpu = q.device.type == "cpu"
    rows = max(16, 64 // repeats) if cpu else 1024
    most_scores = 3 * 2**14 if cpu else 2**21
    keys = max(768, most_scores // max(repeats * min(rows, queries), 1))
    return TileSize(rows, keys, q.device, q.dtype)


def _lane_parts(q: Tensor) -> Iterator[slice]:
    """Runs of lanes whose tiles fit the cache together; all of them on a GPU."""
    lanes = q.shape[0]
    some = CPU_LANES if q.device.type == "cpu" else max(lanes, 1)
    return (slice(first, first + some) for first in range(0, lanes, some))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
