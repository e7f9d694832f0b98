"""What is joined by Triton's kernel is what PyTorch joins; prints the largest difference of each case."""

from __future__ import annotations

import json

import torch

from gossamer.kernels.triton.merging import merge_into
from gossamer.ops.merge import merge_into as joined
from tests.kernels.interpreter import repair_interpreter

CASES = ((1, 1, 1, 8), (2, 3, 70, 64), (1, 2, 33, 40), (1, 4, 64, 128))


def drawn(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """Two outputs in layouts of their own, and their log-sum-exps, of which some are of nothing."""
    batch, heads, queries, width = shape
    made = []
    for number in range(2):
        out = torch.randn(batch, queries, heads, width).transpose(1, 2).to(device, dtype)
        lse = 3 * torch.randn(batch, heads, queries)
        lse[:, :, number::5] = -torch.inf
        lse[:, :, 4::10] = -torch.inf
        out[lse == -torch.inf] = 0.0 if number == 0 else torch.nan
        made += [out, lse.to(device)]
    return made


def difference(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu") -> float:
    """Of the kernel's result from the one that PyTorch gives in float64."""
    out, lse, some_out, some_lse = drawn(shape, dtype, device)
    wide = [x.double().cpu() for x in (out, lse, some_out.nan_to_num(), some_lse)]
    joined(*wide)
    merge_into(out, lse, some_out, some_lse)
    if not torch.equal(lse.cpu() == -torch.inf, wide[1] == -torch.inf):
        return torch.inf
    gap = (lse.double().cpu() - wide[1]).nan_to_num().abs().max()
    return max((out.double().cpu() - wide[0]).abs().max().item(), gap.item())


if __name__ == "__main__":
    torch.manual_seed(0)
    repair_interpreter()
    print(json.dumps([difference(shape, torch.float32) for shape in CASES]))
