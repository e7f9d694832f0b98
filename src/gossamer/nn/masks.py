"""The design document's dense formulas: n×n, for teaching and tests. The names are the document's own."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def compute_sparsity(mask: Shaped[Tensor, "*H Q K"], denominator: Literal["all", "causal"] = "all") -> float:
    """The share of the pairs that `mask` hides (False or 0), averaged over heads.

    `denominator="causal"` counts only the pairs at or before the diagonal, which ends at the last query and key.

    >>> compute_sparsity(torch.ones(4, 4).tril()), compute_sparsity(torch.ones(4, 4).tril(), "causal")
    (0.375, 0.0)

    Raises:
        ValueError: `mask` has fewer than two axes or no pair, or the denominator is unknown.
    """
    if mask.dim() < 2 or mask.numel() == 0:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; give [queries, keys] or [heads, queries, keys]")
    visible = mask != 0
    if denominator == "causal":
        visible = visible[..., _past(mask.shape[-2], mask.shape[-1], mask.device)]
    elif denominator != "all":
        raise ValueError(f"denominator is {denominator!r}; give 'all' or 'causal'")
    return 1.0 - visible.double().mean().item()


def stable_softmax(
    x: Float[Tensor, "*N K"], mask: Shaped[Tensor, "*M K"] | None = None, mask_value: float = -1e9
) -> Float[Tensor, "*N K"]:
    """Softmax over the last axis that never overflows; where `mask` is False or 0 the result is exactly 0.

    Scores are masked with `mask_value` (brought into the dtype's range), shifted by their maximum, and rows with
    nothing to see give zeros.

    >>> stable_softmax(torch.tensor([1000.0, 1000.0, 5.0]), torch.tensor([1, 1, 0])).tolist()
    [0.5, 0.5, 0.0]
    """
    limits = torch.finfo(x.dtype)
    visible = torch.ones_like(x, dtype=torch.bool) if mask is None else mask != 0
    x = x.masked_fill(~visible, max(mask_value, limits.min))
    peak = x.amax(-1, keepdim=True).clamp(min=limits.min)  # finite, so that a row of minus infinities is no NaN
    weights = torch.exp(x - peak) * visible
    return weights / weights.sum(-1, keepdim=True).clamp(min=limits.tiny)


def _past(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "Q K"]:
    """True at or before the diagonal, which ends at the last query and key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def masked_attention(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K Dv"],
    mask: Bool[Tensor, "*H Q K"],
    mask_value: float = -1e9,
) -> Float[Tensor, "B H Q Dv"]:
    """Attention as the document writes it: all n×n scores, a mask, a stable softmax, the weighted values."""
    scores = q @ k.mT * q.shape[-1] ** -0.5  # [B, H, Q, K]
    return stable_softmax(scores, mask, mask_value) @ v
