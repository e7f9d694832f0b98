"""The roads to the best keys: the Triton kernels are right, and each road says what it does not run."""

from __future__ import annotations

import pytest
import torch

from gossamer.indexed import top_keys
from gossamer.kernels import Unsupported
from gossamer.kernels.top_keys import Indexed
from gossamer.kernels.triton.top_keys import TRITON_SCORES
from tests.kernels.interpreter import interpreted_in_halves
from tests.kernels.top_keys_in_interpreter import CHECKS

pytest.importorskip("triton", reason="the kernels need Triton")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    found, complaints = interpreted_in_halves("top_keys_in_interpreter")
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_are_right(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]


def index(heads: int = 4, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> Indexed:
    wide = torch.promote_types(dtype, torch.float32)
    q, k = torch.zeros(1, heads, 3, width, dtype=dtype), torch.zeros(1, 3, width, dtype=dtype)
    return Indexed(q, k, torch.zeros(1, 3, heads, dtype=wide), torch.zeros(1, 3, dtype=torch.int32), True)


def test_triton_says_what_it_does_not_run() -> None:
    assert "it needs a CUDA or ROCm GPU" in (TRITON_SCORES.refuses(index()) or "")
    assert "queries are torch.float64" in (TRITON_SCORES.refuses(index(dtype=torch.float64)) or "")
    assert "heads are 257 wide; it scores 256 at most" in (TRITON_SCORES.refuses(index(width=257)) or "")
    assert "there are 65 heads" in (TRITON_SCORES.refuses(index(65, dtype=torch.float32)) or "")
    assert "there are 257 heads" in (TRITON_SCORES.refuses(index(257)) or "")


def test_a_named_road_runs_or_raises() -> None:
    q, k, weights = torch.zeros(1, 2, 3, 8), torch.zeros(1, 3, 8), torch.zeros(1, 3, 2)
    with pytest.raises(Unsupported, match="triton: tensors are on cpu"):
        top_keys(q, k, weights, 2, backend="triton")
    assert torch.equal(top_keys(q, k, weights, 2, backend="tiled"), top_keys(q, k, weights, 2))
