import pytest
import torch

from gossamer.nn.products import wide_product

HALF = [torch.bfloat16, torch.float16]
half = pytest.mark.parametrize("dtype", HALF)


def drawn(dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(device, dtype) for shape in ((2, 24, 40), (2, 40, 56)))
    return a, b, a.double() @ b.double()


@half
def test_products_of_half_precision_are_not_rounded_to_it(dtype):
    a, b, right = drawn(dtype)
    assert wide_product(a, b).dtype == torch.float32
    torch.testing.assert_close(wide_product(a, b).double(), right, rtol=1e-5, atol=1e-5)


def test_autocast_rounds_nothing():
    a, b, right = drawn(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = wide_product(a, b)
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)


def test_float64_stays():
    a, b, right = drawn(torch.float64)
    assert torch.equal(wide_product(a, b), right)


@pytest.mark.gpu
@half
def test_a_gpu_rounds_nothing_either(dtype):
    a, b, right = drawn(dtype, "cuda")
    torch.testing.assert_close(wide_product(a, b).double(), right, rtol=1e-5, atol=1e-5)
