"""Every kernel of the best keys compiles for Hopper, within its registers and its shared memory."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gossamer.kernels.top_keys import Indexed

triton = pytest.importorskip("triton", reason="the kernels need Triton to compile")

from gossamer.kernels.triton.top_keys_scores import scores_of  # noqa: E402
from gossamer.kernels.triton.top_keys_select import select_top  # noqa: E402
from tests.kernels import sm90  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and compiles nothing", allow_module_level=True)

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
QUICK = (BF16, 64, 128), (FP8, 64, 128), (FP32, 64, 64), (BF16, 4, 64)
ALL = {*product((BF16, FP32, FP8), (1, 8, 64), (64, 128, 256)), (FP16, 24, 96), (BF16, 256, 128), (BF16, 32, 40)}


@pytest.mark.parametrize(
    ("dtype", "heads", "width"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in sorted(ALL - {*QUICK}, key=str))],
)
def test_scores_fit_hopper(dtype: torch.dtype, heads: int, width: int) -> None:
    q = torch.zeros(1, 40, heads, width, dtype=BF16).to(dtype).transpose(1, 2)
    k, scales = torch.zeros(1, 300, width, dtype=BF16).to(dtype), torch.zeros(1, 300) if dtype == FP8 else None
    index = Indexed(q, k, torch.zeros(1, 40, heads), torch.zeros(1, 40, dtype=torch.int32), True, scales)
    with sm90.hopper() as kernels:
        scores_of(index)
    assert [kernel.name for kernel in kernels] == ["_scores"]
    assert [fault for kernel in kernels for fault in kernel.faults] == []


@pytest.mark.parametrize(("keys", "count"), [(4_001, 2048), (20_000, 2048), (131_072, 2048), (131_072, 6000)])
def test_the_choice_fits_hopper(keys: int, count: int) -> None:
    with sm90.hopper() as kernels:
        select_top(torch.zeros(4, keys), torch.zeros(4, dtype=torch.int32), count)
    long = keys > 4_001
    assert [kernel.name for kernel in kernels] == (["_sample", "_narrow"] if long else []) + ["_select"]
    assert [fault for kernel in kernels for fault in kernel.faults] == []
    for kernel in kernels:
        threads = {"_sample": 256, "_narrow": 128, "_select": 256 if long else 128}[kernel.name]
        assert kernel.registers * threads <= 65536 // 3, "it is other rows that hide what a row waits for"
