"""Dense attention in float64: the oracle that every kernel is held against."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .patterns.base import Pattern


def reference(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    pattern: Pattern,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    keep: Float[Tensor, "B H Q K"] | None = None,
) -> tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """(output, log-sum-exp) of attention as its definition reads, in float64 and with n×n memory.

    `keep` multiplies the probabilities: 0 where dropout drops, 1 / (1 - p) elsewhere. A query that sees nothing
    gives zeros and minus infinity. Differentiable.
    """
    q, k, v = q.double(), k.double(), v.double()
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # [B, H, Q, K]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(pattern, q.shape[2], k.shape[2], q.device), -torch.inf)
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], -1)
    empty = (scores == -torch.inf).all(-1)
    lse = torch.logsumexp(scores.masked_fill(empty[..., None], 0.0), -1)  # finite, so that its gradient is too
    probabilities = torch.exp(scores - lse[..., None])[..., : k.shape[2]]
    return (probabilities if keep is None else probabilities * keep) @ v, lse.masked_fill(empty, -torch.inf)


def visible(pattern: Pattern, queries: int, keys: int, device: torch.device) -> Bool[Tensor, "*H Q K"]:
    """The pattern as a dense mask, True where visible."""
    return torch.from_numpy(pattern.dense_mask(queries, keys)).to(device)
