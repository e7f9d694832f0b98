"""The Triton road of indexed attention: its kernels are right, and it says what it does not run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from gossamer import Unsupported
from gossamer.indexed import Selection, attend_indexed
from tests.kernels.indexed_in_interpreter import CHECKS
from tests.kernels.indexed_planted_in_interpreter import FAULTS, SOUND
from tests.kernels.interpreter import interpreted_in_halves


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    found, complaints = interpreted_in_halves("indexed_in_interpreter")
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_are_right(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]


@pytest.fixture(scope="module")
def planted_failures() -> dict[str, str]:
    if find_spec("triton") is None:
        pytest.skip("needs Triton")
    return interpreted_in_halves("indexed_planted_in_interpreter")[0]


@pytest.mark.parametrize("name", SOUND)
def test_the_sound_kernels_pass(name: str, planted_failures: dict[str, str]) -> None:
    assert not planted_failures[f"sound: {name}"], planted_failures[f"sound: {name}"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, planted_failures: dict[str, str]) -> None:
    assert planted_failures[f"faulty: {name}"]


@pytest.mark.parametrize(
    ("dtype", "width", "reason"),
    [
        (torch.float32, 16, "triton: tensors are on cpu; it needs a CUDA or ROCm GPU"),
        (torch.float64, 16, "triton: inputs are torch.float64; it computes float32, bfloat16 and float16"),
        (torch.bfloat16, 600, "triton: heads are 600 and 600 wide; it computes 576 at most in torch.bfloat16"),
        (torch.float32, 300, "triton: heads are 300 and 300 wide; it computes 256 at most in torch.float32"),
    ],
)
def test_it_says_why_not(dtype: torch.dtype, width: int, reason: str) -> None:
    q = torch.zeros(1, 1, 4, width, dtype=dtype)
    with pytest.raises(Unsupported) as raised:
        attend_indexed(q, q, q, Selection(torch.zeros(1, 4, 1, dtype=torch.int64)), backend="triton")
    assert reason in str(raised.value)
