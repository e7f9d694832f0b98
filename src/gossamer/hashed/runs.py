"""Hashed attention by the band kernels: of its own sorted bucket, what a causal token sees is a run of places.

Queries, keys and values are copied into the order of each round, all rounds laid end to end; a run of a round ends at
the token's own place, or is that place alone for a token that sees nobody in any round. Results go back to where the
tokens stand, and the rounds are joined by their log-sum-exps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.hashed import ALONE
from ..runs import attend_runs
from ..selectors.lsh import LSH
from ..selectors.rounds import SortedRounds, inverse, sorted_rounds


class Runs(NamedTuple):
    """Sorted rounds and the run of places that each place sees."""

    order: Tensor
    """int64 [B, H, R, N]: the token at each place."""
    place: Tensor
    """int64 [B, H, R, N]: the place of each token."""
    alone: Tensor
    """bool [B, H, N]: which tokens see nobody in any round."""
    start: Tensor
    """int32 [B · H, R · N]"""
    stop: Tensor
    """int32 [B · H, R · N]"""


def why_no_runs(lsh: LSH, rounds: int) -> str | None:
    """Why what a token sees is not one run of sorted places in each round, or None where it is."""
    if not lsh.causal:
        return "both ways, a token stands within what it sees, and the hole makes two runs; it takes causal=True"
    if lsh.other_buckets:
        return "tokens of several buckets are in no order of time; it takes other_buckets=False"
    if not lsh.repeats and rounds > 1:
        return "tokens met in several rounds weigh less in each; it takes one round, or repeats=True"
    return None


def attend_by_runs(
    x: Tensor, v: Tensor, buckets: Tensor, lsh: LSH, *, most: int | None, within: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [B, H, N, Dv], log-sum-exp [B, H, N]) of a problem for which `why_no_runs` has no reason."""
    with torch.no_grad():
        runs = _runs(sorted_rounds(buckets, lsh.chunks, most=most, within=within, own_bucket=True))
    shape = runs.order.shape
    q, k, values = (_placed(y, runs) for y in (x, lsh.keys(x), v))
    out, lse = attend_runs(q, k, values, runs.start, runs.stop, scale=scale, return_lse=True)
    out, lse = (y.reshape(*shape, -1) for y in (out, lse))
    out, lse = (_Reordered.apply(y, runs.place, runs.order) for y in (out, lse))
    lse = torch.where(runs.alone[:, :, None], torch.where(lse > -torch.inf, ALONE, lse)[..., 0], lse[..., 0])
    if shape[2] == 1:
        return out[:, :, 0], lse[:, :, 0]
    total = torch.logsumexp(lse.masked_fill(lse.isneginf().all(2, keepdim=True), ALONE), 2)
    share = torch.exp(lse - total[:, :, None])
    joined = (out * share[..., None]).sum(2).to(v.dtype)
    return joined, total.masked_fill(lse.isneginf().all(2), -torch.inf)


def _runs(rounds: SortedRounds) -> Runs:
    assert rounds.start is not None
    order = rounds.order
    *_, turns, length = order.shape
    place, start = inverse(order), rounds.start.transpose(2, 3)
    alone = (start == place).all(2)
    if rounds.count is not None:  # what does not exist sees not even itself
        alone &= (place < rounds.count[:, None, None, None]).all(2)
    order, place = order.long(), place.long()
    here = torch.arange(length, dtype=torch.int32, device=order.device)
    start = start.gather(3, order)  # from now on by places
    if rounds.count is not None:
        start = torch.where(here < rounds.count[:, None, None, None], start, here)
    stop = here.expand_as(start).clone()
    stop[:, :, 0] += alone.gather(2, order[:, :, 0])
    ahead = length * torch.arange(turns, dtype=torch.int32, device=order.device)[:, None]
    return Runs(order, place, alone, *((y + ahead).flatten(0, 1).flatten(1) for y in (start, stop)))


def _placed(x: Tensor, runs: Runs) -> Tensor:
    """[B · H, 1, R · N, D]: the rows of `x` in the order of each round, the rounds end to end."""
    several = x[:, :, None].expand(-1, -1, runs.order.shape[2], -1, -1)
    return _Reordered.apply(several, runs.order, runs.place).flatten(0, 1).flatten(1, 2)[:, None]


class _Reordered(torch.autograd.Function):
    """Rows [B, H, R, N, D] in an order; gradients come back by its inverse, and nothing is added up by chance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return torch.take_along_dim(x, order[..., None], 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (inverse,) = grads, ctx.saved_tensors
        return torch.take_along_dim(grad, inverse[..., None], 3), None, None
