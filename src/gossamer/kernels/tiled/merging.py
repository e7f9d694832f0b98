"""A softmax over some keys joined to one over others, in place, by PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_into(out: Tensor, lse: Tensor, some_out: Tensor, some_lse: Tensor) -> None:
    """Makes `out` [B, H, Q, D] and `lse` [B, H, Q] those of the softmax over the keys of both."""
    total = torch.logaddexp(lse, some_lse)
    kept, added = (_share(part, total)[..., None] for part in (lse, some_lse))
    out.copy_(out.to(kept.dtype) * kept + some_out.to(kept.dtype).masked_fill(added == 0.0, 0.0) * added)
    lse.copy_(total)


def _share(part: Tensor, total: Tensor) -> Tensor:
    """Of the whole softmax; nothing where it is nothing, also where the whole is."""
    return (part - total).exp().masked_fill(part == -torch.inf, 0.0)
