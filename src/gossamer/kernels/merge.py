"""A softmax over some keys joined to one over others, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .devices import capability, made_current

FAST = (torch.float16, torch.bfloat16, torch.float32)


def merge_into(out: Tensor, lse: Tensor, some_out: Tensor, some_lse: Tensor) -> None:
    """Makes `out` [B, H, Q, D] and `lse` [B, H, Q] those of the softmax over the keys of both, which share none.

    A part whose log-sum-exp is minus infinity adds nothing. On NVIDIA's GPUs each number is read and written once;
    elsewhere, and in float64, PyTorch does it.
    """
    if capability(out.device) is not None and out.dtype in FAST:
        from .triton.merging import merge_into as by_triton

        with made_current(out.device):
            return by_triton(out, lse, some_out, some_lse)
    total = torch.logaddexp(lse, some_lse)
    kept, added = (_share(part, total)[..., None] for part in (lse, some_lse))
    wide = kept.dtype
    out.copy_(out.to(wide) * kept + some_out.to(wide) * added)
    lse.copy_(total)


def _share(part: Tensor, total: Tensor) -> Tensor:
    """Of the whole softmax; nothing where it is nothing, also where the whole is."""
    return (part - total).exp().masked_fill(part == -torch.inf, 0.0)
