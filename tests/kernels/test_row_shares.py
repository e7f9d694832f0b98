"""Rows that were computed in shares, in the interpreter: what PyTorch makes of them."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import interpreted
from tests.kernels.row_shares_in_interpreter import CHECKS

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    found, _ = interpreted("row_shares_in_interpreter")  # log(0) is what a row that sees nothing has
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernel_does_what_pytorch_does(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
