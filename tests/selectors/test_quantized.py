"""Eight bits: scales are what they should be, rounding is within half a step, and the Hadamard rotation is one."""

from __future__ import annotations

import pytest
import torch

from gossamer.selectors.quantized import LARGEST, hadamard, quantized


@pytest.mark.parametrize("precision", ["fp8", "fp8 ue8m0"])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_each_feature_is_rounded_to_four_bits(size: float, precision: str) -> None:
    x = torch.randn(50, 128).double() * size
    values, scale = quantized(x, precision)
    assert values.dtype == torch.float8_e4m3fn
    error = (values.double() * scale[:, None] - x).abs()
    assert (error <= x.abs() * 2**-4 + scale[:, None] * 2**-10).all()


def test_the_largest_feature_fills_the_range() -> None:
    x = torch.randn(50, 128)
    values, scale = quantized(x)
    assert torch.equal(values.float().abs().amax(-1), torch.full((50,), LARGEST))
    torch.testing.assert_close(scale, x.abs().amax(-1) / LARGEST)


def test_small_vectors_are_not_blown_up() -> None:
    values, scale = quantized(torch.tensor([[0.0, 0.0], [1e-5, 0.0]]))
    assert torch.equal(scale, torch.full((2,), 1e-4) / LARGEST)
    assert values.float()[0].tolist() == [0.0, 0.0]
    assert values.float()[1, 0] == 44.0  # 44.8 to four bits


def test_scales_are_rounded_up_to_powers_of_two() -> None:
    x = torch.tensor([[448.0], [449.0], [447.0], [224.0], [1e-9], [3e38]])
    scale = quantized(x, "fp8 ue8m0")[1]
    assert scale[:4].tolist() == [1.0, 2.0, 1.0, 0.5]
    assert torch.equal(scale.log2(), scale.log2().round())
    plain = quantized(x)[1]
    assert ((scale >= plain) & (scale < 2 * plain)).all()


def test_what_is_not_finite_does_not_become_a_number() -> None:
    for bad in (torch.inf, torch.nan):
        values, scale = quantized(torch.tensor([[1.0, bad]]))
        assert (values.float() * scale[:, None]).isnan().any()


@pytest.mark.parametrize("width", [1, 2, 64, 128])
def test_the_hadamard_rotation_keeps_products(width: int) -> None:
    x, y = torch.randn(2, 30, width).double()
    torch.testing.assert_close(hadamard(x) @ hadamard(y).mT, x @ y.mT)
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    signs = hadamard(torch.eye(width).double()) * width**0.5
    torch.testing.assert_close(signs.abs(), torch.ones(width, width).double())


def test_the_hadamard_rotation_rounds_once() -> None:
    x = torch.randn(30, 128).bfloat16()
    assert torch.equal(hadamard(x), hadamard(x.float()).bfloat16())


@pytest.mark.parametrize("width", [3, 96])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"x is {width} wide"):
        hadamard(torch.zeros(2, width))
