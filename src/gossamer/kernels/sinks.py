"""The gradient of the sinks, which no tile of any kernel has to know."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Saved


def sink_gradient(saved: Saved, grad_out: Tensor, grad_lse: Tensor | None) -> Tensor | None:
    """A sink's probability times what the other keys lose to it, summed over batch and queries: [H]; None without."""
    if saved.sinks is None:
        return None
    wide = torch.promote_types(saved.out.dtype, torch.float32)
    delta = torch.einsum("bhqd,bhqd->bhq", grad_out.to(wide), saved.out.to(wide))
    if grad_lse is not None:
        delta = delta - grad_lse
    lse = saved.lse.double().clamp(min=torch.finfo(saved.lse.dtype).min)  # -inf where even the sink is minus infinity
    probability = torch.exp(saved.sinks.double()[:, None] - lse)  # few numbers, and their sum cancels: float64 is free
    return -(probability * delta).sum(dim=(0, 2)).to(saved.sinks.dtype)
