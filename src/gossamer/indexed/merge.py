"""`merge_attention`: one softmax over parts that were computed apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def merge_attention(
    parts: Sequence[tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]],
    sinks: Float[Tensor, " H"] | None = None,
) -> tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """(out, log-sum-exp) of one softmax over all keys of the parts, which must have none in common.

    Each part is what `attend(…, return_lse=True)` and its kin give: an output and a natural log-sum-exp. A part in
    which a query sees nothing, told by minus infinity, adds nothing to it, whatever its output holds; a query that
    sees nothing in any gives zeros and minus infinity, or its sink. The log-sum-exp is in the widest dtype of the
    parts' own, the output in that of the first output. Differentiable in all that is given.

    >>> q, k, v = torch.randn(3, 1, 2, 8, 4)
    >>> scores = q @ k.mT
    >>> parts = [(scores[..., part].softmax(-1) @ v[..., part, :], scores[..., part].logsumexp(-1))
    ...          for part in (slice(0, 3), slice(3, 8))]
    >>> torch.allclose(merge_attention(parts)[0], scores.softmax(-1) @ v, atol=1e-5)
    True

    Args:
        parts: At least one.
        sinks: One logit a head that joins the softmax's denominator only; the parts must not hold it already.

    Raises:
        ValueError: There is no part, or shapes do not fit.
    """
    parts = list(parts)
    _check(parts, sinks)
    wide = torch.promote_types(parts[0][1].dtype, torch.float32)
    norms = [lse.to(wide) for _, lse in parts]
    if sinks is not None:
        norms.append(sinks.to(wide)[:, None].expand(parts[0][1].shape))
    peak = torch.stack([norm.detach() for norm in norms]).amax(0)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    weights = [(norm - peak).exp() for norm in norms]
    total = torch.stack(weights).sum(0)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    out = torch.zeros_like(parts[0][0], dtype=torch.promote_types(wide, parts[0][0].dtype))
    for (mean, lse), weight in zip(parts, weights, strict=False):  # the sink has no value
        out = out + mean.masked_fill((lse == -torch.inf)[..., None], 0.0) * (weight / total)[..., None]
    return out.to(parts[0][0].dtype), (peak + total.log()).masked_fill(nothing, -torch.inf)


def _check(parts: list[tuple[Tensor, Tensor]], sinks: Tensor | None) -> None:
    if not parts:
        raise ValueError("parts is empty; give at least one pair of an output and its log-sum-exp")
    shape = parts[0][0].shape
    for number, (out, lse) in enumerate(parts):
        if out.ndim != 4 or out.shape != shape or lse.shape != shape[:3]:
            raise ValueError(
                f"parts[{number}] is of shapes {tuple(out.shape)} and {tuple(lse.shape)}; give an output [B, H, Q, Dv] "
                f"and its log-sum-exp [B, H, Q], of the same shapes in each part"
            )
    if sinks is not None and sinks.shape != shape[1:2]:
        raise ValueError(f"sinks has shape {tuple(sinks.shape)}; give one logit for each of the {shape[1]} heads")
