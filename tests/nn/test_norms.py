"""Norms: their formulas, and the dtype that goes in comes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gossamer.nn.norms import ShiftedRMSNorm, normalised


def test_one_more_than_the_weight_is_the_factor() -> None:
    norm, x = ShiftedRMSNorm(6, eps=1e-3).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    right = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1 + norm.weight)
    torch.testing.assert_close(norm(x), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_vectors_are_normalised_in_float32(dtype: torch.dtype) -> None:
    x, norm, shifted = torch.randn(2, 6).to(dtype), nn.RMSNorm(6, 1e-6), ShiftedRMSNorm(6)
    assert torch.equal(shifted(x), shifted(x.float()).to(dtype))
    assert torch.equal(normalised(x, norm), norm(x.float()).to(dtype))
