"""What is launched for chosen blocks compiles for Hopper, within its registers and its shared memory."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton to compile")

from gossamer.kernels.block_choices.blocks import ChosenBlocks
from gossamer.kernels.hopper.block_choices import HopperChosen
from gossamer.kernels.triton.block_choices import TritonChosen
from tests.kernels import sm90


@pytest.mark.slow  # they compile for a minute where Triton has not done so before
@pytest.mark.parametrize("group", [4, 8, 16], ids=str)
@pytest.mark.parametrize("road", [HopperChosen, TritonChosen])
def test_it_compiles(road: type[ChosenBlocks], group: int) -> None:
    q, k = (torch.empty(1, heads, 256, 128, dtype=torch.bfloat16) for heads in (2 * group, 2))
    numbers = torch.empty(1, 2, 256, 16, dtype=torch.int32)
    with sm90.hopper() as kernels:
        work = road(q, k, k, numbers, 64, True, 0.1)
        out, lse = work.forward(torch.empty(2 * group))
        work.backward(out, lse, torch.empty_like(out), torch.empty_like(lse))
    assert len(kernels) > 6
    assert not [fault for kernel in kernels for fault in kernel.faults]
