"""Parts of a softmax are joined in place: by PyTorch, and by a kernel, here in the interpreter and for sm_90."""

import pytest
import torch

from gossamer.indexed import merge_attention
from gossamer.kernels.triton import merging
from gossamer.ops.merge import merge_into
from tests.kernels.interpreter import interpreted
from tests.kernels.merging_in_interpreter import CASES, difference, drawn
from tests.kernels.sm90 import hopper


@pytest.mark.parametrize("shape", CASES)
def test_it_is_one_softmax(shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    out, lse, some_out, some_lse = (x.double() for x in drawn(shape, torch.float32))
    some_out = some_out.nan_to_num()
    expected, norm = merge_attention([(out, lse), (some_out, some_lse)])
    merge_into(out, lse, some_out, some_lse)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(lse, norm, rtol=0, atol=1e-14)


def test_the_kernel_is_right() -> None:
    errors, _ = interpreted("merging_in_interpreter")
    assert len(errors) == len(CASES) and max(errors) < 1e-6


@pytest.mark.parametrize("width", [64, 128, 256])
def test_it_fits_hopper(width: int) -> None:
    drawn_parts = drawn((1, 2, 64, width), torch.bfloat16)
    with hopper() as compiled:
        merging.merge_into(*drawn_parts)
    assert [kernel.faults for kernel in compiled] == [[]]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*CASES, (2, 12, 5000, 96)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
def test_a_gpu_joins_them(shape: tuple[int, int, int, int], dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    assert difference(shape, dtype, "cuda") < bound
