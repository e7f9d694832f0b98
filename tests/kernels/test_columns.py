"""Gathered keys and the gradients that go back to them: in the interpreter the very numbers that PyTorch makes."""

from __future__ import annotations

import pytest

from tests.kernels.columns_in_interpreter import CHECKS
from tests.kernels.interpreter import interpreted_in_halves

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    found, complaints = interpreted_in_halves("columns_in_interpreter")
    assert "Warning" not in complaints, complaints
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_the_kernels_do_what_pytorch_does(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]
