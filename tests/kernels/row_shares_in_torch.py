"""What `kernels/hopper/row_shares.py` does, in PyTorch: the tests' reference, and its stand-in without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.hopper.operands import Results


def gathered(q: Tensor, queries: Tensor) -> Tensor:
    return q.index_select(2, queries)


def taken(q: Tensor, results: Results, queries: Tensor, absent: Tensor) -> tuple[Tensor, Results, Tensor]:
    return q.index_select(2, queries), results.of(queries), results.lse.masked_fill(absent, -torch.inf)


def write_joined(
    parts: Tensor, part_lse: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor, queries: Tensor, *, shares: int
) -> None:
    part, row_lse = _apart(parts, queries, shares), _apart(part_lse, queries, shares)
    if sinks is not None:
        part = torch.cat([part, torch.zeros_like(part[:, :, :1])], 2)
        row_lse = torch.cat([row_lse, sinks.to(row_lse)[:, None, None].expand_as(row_lse[:, :, :1])], 2)
    both = torch.logsumexp(row_lse, 2)
    weights = torch.exp(row_lse - both.masked_fill(both == -torch.inf, 0.0)[:, :, None])
    out[:, :, queries] = (weights[..., None] * part).sum(2).to(out.dtype)
    lse[:, :, queries] = both.to(lse.dtype)


def write_sums(parts: Tensor, x: Tensor, queries: Tensor, *, shares: int) -> None:
    x[:, :, queries] = _apart(parts, queries, shares).sum(2).to(x.dtype)


def _apart(x: Tensor, queries: Tensor, shares: int) -> Tensor:
    """The wanted rows of each share, float64 [B, H, shares, m, …]."""
    return x.double().unflatten(2, (shares, -1))[:, :, :, : len(queries)]
