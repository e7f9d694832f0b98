"""Normalisation under autocast."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


def normalised(x: Float[Tensor, "*B D"], norm: nn.RMSNorm) -> Float[Tensor, "*B D"]:
    """`norm(x)` computed in the dtype of the norm's weight, in the dtype of `x`, which autocast may make narrower.

    >>> import torch
    >>> normalised(torch.ones(2, 4, dtype=torch.bfloat16), nn.RMSNorm(4)).dtype
    torch.bfloat16
    """
    return norm(x.to(norm.weight.dtype)).to(x.dtype)
