"""What is launched for chosen blocks compiles for Hopper, within its registers and its shared memory."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton to compile")

from gossamer.kernels.block_choices.blocks import ChosenBlocks
from gossamer.kernels.hopper.block_choices import HopperChosen
from gossamer.kernels.triton.block_choices import TritonChosen
from gossamer.kernels.triton.chosen_blocks import NEEDED
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "width", "size"),
    [
        (torch.bfloat16, 128, 64), (torch.bfloat16, 64, 64), (torch.float16, 256, 32), (torch.bfloat16, 256, 16),
        (torch.float32, 64, 64), (torch.float32, 128, 32), (torch.float32, 128, 16), (torch.float32, 256, 16),
    ],
    ids=str,
)  # fmt: skip
def test_portable_kernels_fit_what_they_say(dtype: torch.dtype, width: int, size: int) -> None:
    q, k = (torch.empty(1, heads, 256, width, dtype=dtype) for heads in (8, 2))
    numbers = torch.empty(1, 2, 256, 16, dtype=torch.int32)
    with sm90.hopper() as kernels:
        work = TritonChosen(q, k, k, numbers, size, True, 0.1)
        out, lse = work.forward()
        work.backward(out, lse, torch.empty_like(out), torch.empty_like(lse))
    taken = size * 2 * width * q.element_size()
    needed = next(needed for most, needed in NEEDED.items() if taken <= most)
    assert max(kernel.shared_memory for kernel in kernels) <= needed
    assert not [fault for kernel in kernels for fault in kernel.faults]
