"""Norms that do not mind autocast, in the two forms that models have."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm


def normalised(x: Float[Tensor, "*B E"], norm: nn.RMSNorm) -> Float[Tensor, "*B E"]:
    """`norm(x)` computed in the dtype of the norm's weight, in the dtype of `x`, which autocast may make narrower.

    >>> normalised(torch.ones(2, 4, dtype=torch.bfloat16), nn.RMSNorm(4)).dtype
    torch.bfloat16
    """
    return norm(x.to(norm.weight.dtype)).to(x.dtype)


class ShiftedRMSNorm(nn.Module):
    """Vectors over their root mean square, times one more than the weight, as Gemma and MiniMax-M3 keep it.

    Computed in at least float32, and given in the dtype of the input.

    >>> ShiftedRMSNorm(4)(torch.full((1, 4), 3.0)).round(decimals=3).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B E"]:
        """The vectors, normalised."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return rms_norm(x.to(wide), x.shape[-1:], 1.0 + self.weight.to(wide), self.eps).to(x.dtype)
