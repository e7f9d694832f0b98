"""A softmax over some keys joined to one over others, in place: by one kernel on a GPU, by PyTorch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.devices import capability, made_current
from ..kernels.tiled.merging import merge_into as by_pytorch

BY_TRITON = (torch.float16, torch.bfloat16, torch.float32)


def merge_into(out: Tensor, lse: Tensor, some_out: Tensor, some_lse: Tensor) -> None:
    """Makes `out` [B, H, Q, D] and `lse` [B, H, Q] those of the softmax over the keys of both, which share none.

    A part whose log-sum-exp is minus infinity adds nothing, whatever its output holds.
    """
    if capability(out.device) is None or out.dtype not in BY_TRITON:
        return by_pytorch(out, lse, some_out, some_lse)
    from ..kernels.triton.merging import merge_into as by_triton

    with made_current(out.device):
        return by_triton(out, lse, some_out, some_lse)
